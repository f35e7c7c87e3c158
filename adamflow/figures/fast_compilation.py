"""Programs that XLA compiles fast and runs slower, for tests and figures that compile much and compute little.

It imports nothing of adamflow, since it has to act before jax starts.
"""

import os
import subprocess
import sys

#: What makes XLA compile twice as fast. By itself it splits each program into 32 modules, which threads compile side by
#: side; in one module they take an eighth to a quarter less of a processor, and a test has no second one.
FLAGS = (
    "--xla_cpu_use_fusion_emitters=false --xla_backend_optimization_level=1 --xla_llvm_disable_expensive_passes=true "
    "--xla_cpu_parallel_codegen_split_count=1"
)


def compile_fast() -> None:
    """Set these flags in the environment, unless there are others, or this XLA does not know them.

    It ends the process of whoever gives an unknown one. Processes that begin later inherit the environment, so this
    asks once for all of them.
    """
    if "XLA_FLAGS" not in os.environ:
        known = subprocess.run(
            [sys.executable, "-c", "import jax; jax.devices('cpu')"],
            env={**os.environ, "XLA_FLAGS": FLAGS},
            capture_output=True,
        )
        os.environ["XLA_FLAGS"] = FLAGS if known.returncode == 0 else ""
