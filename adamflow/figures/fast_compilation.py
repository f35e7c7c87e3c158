"""Programs that XLA compiles fast and runs slower, for tests and figures that compile much and compute little.

It imports nothing of adamflow, since it has to act before jax starts.
"""

import os
import subprocess
import sys

#: With a low level of optimization, what makes XLA compile twice as fast. By itself it splits each program into 32
#: modules, which threads compile side by side; in one module they take an eighth to a quarter less of a processor, and
#: a test has no second one.
FLAGS = (
    "--xla_cpu_use_fusion_emitters=false --xla_llvm_disable_expensive_passes=true "
    "--xla_cpu_parallel_codegen_split_count=1"
)


def compile_fast(optimization: int = 1) -> None:
    """Set these flags in the environment, unless there are others, or this XLA does not know them.

    It ends the process of whoever gives an unknown one. Processes that begin later inherit the environment, so this
    asks once for all of them.

    Args:
        optimization: LLVM's level, of 0 to 3; 0 is for programs that run only for a moment.
    """
    if "XLA_FLAGS" not in os.environ:
        flags = f"{FLAGS} --xla_backend_optimization_level={optimization}"
        known = subprocess.run(
            [sys.executable, "-c", "import jax; jax.devices('cpu')"],
            env={**os.environ, "XLA_FLAGS": flags},
            capture_output=True,
        )
        os.environ["XLA_FLAGS"] = flags if known.returncode == 0 else ""
