"""How far runs of `af.solve` and of SciPy are from the truth, in units of the tolerance, on random problems.

    python bench/accuracy.py --seeds 0:200 --solvers auto,dopri8 --jobs 2 --out build/accuracy.jsonl
    python bench/accuracy.py --one 123                     # one problem in detail
    python bench/accuracy.py --table build/accuracy.jsonl  # the table of runs that are there

An error is the rms over the coordinates, over the largest distance moved so far plus a tenth of the rms of the start;
the largest over the saved iterations counts, over rtol. A is the amplification of a perturbed start, at least 1: an
error of A·rtol is what an early error of rtol grows to by itself. A run that says that it has not completed is a
failure said, not an error. The truth (`bench/references.py`) is kept on disk, so that a solver can be changed without
computing it again; problems without a trustworthy one are counted, by the reason, and left out.

Gradients are those that `Stats` counts. In the last column dense Jacobians count too, as d + 1 gradients each, which in
runs by collocation they always do.
"""

import argparse
import collections
import concurrent.futures
import dataclasses
import json
import multiprocessing
import os
import sys
import time
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    # Processes share the cores, so that each has one thread; set before jax starts, here and in those begun from here.
    os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import diffrax
import equinox as eqx
import jax
import numpy as np
from random_problems import RandomProblem, draw, shape_of
from references import DIVERGED, Reference, reference_of
from scipy_flows import SCIPY, run_scipy

import adamflow as af

jax.config.update("jax_enable_x64", True)

#: By name: what `af.solve` takes, and its most steps. An implicit step costs some ten times an explicit one.
SOLVERS: dict[str, tuple[Any, int]] = {
    "auto": ("auto", 100_000),
    "collocation": ("collocation", 100_000),
    "tsit5": (diffrax.Tsit5(), 100_000),
    "dopri8": (diffrax.Dopri8(), 100_000),
    "kvaerno5": (diffrax.Kvaerno5(root_finder=af.CHORD_ROOT_FINDER), 5_000),
    "kencarp4": (diffrax.KenCarp4(root_finder=af.CHORD_ROOT_FINDER), 5_000),
}
#: By name, "auto" in a precision at an rtol, on the problems whose own rtol, and so their truth, is no looser.
PRECISIONS = {
    f"{precision}-1e-{digits}": (precision, 10.0**-digits)
    for precision in ("float32", "float64")
    for digits in (2, 3, 4, 5)
}
EVERY = (*SOLVERS, *PRECISIONS, *SCIPY)

#: Problems in one task of a process: few, so that the cores end together, but enough to pay for the compilation.
TASK = 10


def measure(problem: RandomProblem, solver: str, reference: Reference) -> dict[str, Any]:
    """Run a solver on a problem: its outcome, its cost, and its errors over rtol.

    Returns:
        a record of plain values: that of the problem, and
        - `solver`, and `reference`, the status of the reference; `own_rtol`, that of the problem if `rtol` is another;
        - `outcome`: one of `af.OUTCOMES`, or what was raised;
        - `gradients`, `jacobians`, `accepted`: what `Stats` says; `work`: gradients, with a dense Jacobian as d + 1;
        - `seconds`: of the processor, compilation included;
        - `amplification`, and `dopri8`: the gradients of Dopri8 on this problem, NaN if it does not complete;
        - `worst`: error/rtol, `None` unless it completed; `worst_at`: the index of that saved iteration;
        - `relative`: `worst` over the amplification.
    """
    record: dict[str, Any] = {"own_rtol": problem.rtol}
    problem = asked(problem, solver)
    record |= problem.describe() | {"solver": solver, "reference": reference.status}
    record |= {"amplification": reference.amplification, "dopri8": reference.gradients}
    record |= {"worst": None, "worst_at": None, "relative": None}
    started = time.process_time()
    try:
        rows, cost = run(problem, solver)
    except Exception as error:
        return record | {"outcome": f"{type(error).__name__}: {str(error)[:300]}"}
    record |= cost | {"seconds": time.process_time() - started}
    if cost["outcome"] == "completed" and reference.good:
        errors = reference.errors(rows) / problem.rtol
        worst = int(np.argmax(errors))
        record |= {"worst": float(errors[worst]), "worst_at": worst}
        record |= {"relative": float(errors[worst] / reference.amplification)}
    return record


def run(problem: RandomProblem, solver: str) -> tuple[np.ndarray, dict[str, Any]]:
    """Rows of shape (saved, d), fewer if it failed; outcome and cost."""
    if solver in SCIPY:
        rows, cost = run_scipy(problem, solver)
        return rows, cost | {"work": cost["gradients"] + cost["jacobians"] * (problem.shape.dimension + 1)}
    method, max_steps = SOLVERS["auto" if solver in PRECISIONS else solver]
    flow, loss, params = problem.flow, problem.loss, problem.params
    if solver in PRECISIONS:
        kind = PRECISIONS[solver][0]
        flow, loss, params = jax.tree.map(
            lambda leaf: leaf.astype(kind) if eqx.is_inexact_array(leaf) else leaf, (flow, loss, params)
        )
    options: dict[str, Any] = {"save_at": problem.save_at, "rtol": problem.rtol, "max_steps": max_steps}
    options["on_failure"] = "ignore"
    found = af.solve(flow, loss, params, problem.steps, solver=method, **options)
    stats = found.stats
    cost = {"outcome": found.outcome.name, "gradients": stats.gradient_evaluations}
    cost |= {"jacobians": stats.jacobian_evaluations, "accepted": stats.accepted_steps}
    # Collocation has counted its few Hessians among the gradients; diffrax's implicit solvers, which take a Jacobian in
    # each attempted step at least, have not.
    separate = 0 < stats.accepted_steps + stats.rejected_steps <= stats.jacobian_evaluations
    extra = stats.jacobian_evaluations * (problem.shape.dimension + 1) if separate else 0
    return np.asarray(found.params), cost | {"work": stats.gradient_evaluations + extra}


def work(seeds: list[int], solvers: list[str], cache: Path, out: Path, deadline: float, done: set) -> int:
    """Measure solvers on problems of one shape, and append a line for each run; the number of runs."""
    warnings.simplefilter("ignore")
    jax.config.update("jax_compilation_cache_dir", str(cache / "programs"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    count = 0
    for seed in seeds:
        problem = draw(seed)
        missing = [solver for solver in solvers if (seed, solver) not in done and _fits(problem, solver)]
        if not missing or time.time() > deadline:
            continue
        reference = reference_of(problem, cache)
        for solver in missing:
            if time.time() > deadline:
                break
            worth = reference.good or reference.status == DIVERGED
            record = problem.describe() | {"solver": solver, "reference": reference.status}
            append(out, measure(problem, solver, reference) if worth else record)
            count += 1
    return count


def asked(problem: RandomProblem, solver: str) -> RandomProblem:
    """The problem with the rtol that the solver is asked for."""
    return dataclasses.replace(problem, rtol=PRECISIONS[solver][1]) if solver in PRECISIONS else problem


def _fits(problem: RandomProblem, solver: str) -> bool:
    """Whether the truth of a problem is known well enough for a solver."""
    return solver not in PRECISIONS or problem.rtol <= 1.01 * PRECISIONS[solver][1]


def append(out: Path, record: dict[str, Any]) -> None:
    """Write a line at once: other processes write to the same file."""
    line = (json.dumps(record) + "\n").encode()
    handle = os.open(out, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        os.write(handle, line)
    finally:
        os.close(handle)


def tasks(seeds: Iterable[int]) -> list[list[int]]:
    """Seeds of one shape each, in the order of the seeds."""
    found: list[list[int]] = []
    current: dict[Any, list[int]] = {}
    for seed in seeds:
        task = current.get(shape_of(seed))
        if task is None or len(task) >= TASK:
            task = current[shape_of(seed)] = []
            found.append(task)
        task.append(seed)
    return found


def measure_all(seeds: list[int], given: argparse.Namespace) -> None:
    """All solvers on all problems, in processes; a line in the file for each run as soon as it is there."""
    deadline = time.time() + given.seconds
    done = {(record["seed"], record["solver"]) for record in read([given.out])} if given.resume else set()
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(given.jobs, mp_context=context) as pool:
        jobs = [pool.submit(work, t, given.solvers, given.cache, given.out, deadline, done) for t in tasks(seeds)]
        count = 0
        for number, job in enumerate(concurrent.futures.as_completed(jobs), 1):
            count += job.result()
            left = max(0.0, deadline - time.time())
            print(f"\r{number}/{len(jobs)} tasks, {count} runs, {left:.0f} s left", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)


def read(paths: list[Path]) -> list[dict[str, Any]]:
    """The records of some files; of two on the same problem and solver the later."""
    found: dict[tuple[int, str], dict[str, Any]] = {}
    for path in paths:
        if not path.exists():
            continue
        for line in path.read_text().splitlines():
            record = json.loads(line)
            found[record["seed"], record["solver"]] = record
    return list(found.values())


HEADER = (
    f"{'':28}{'':14} | error / (A rtol){'':35} | error / rtol{'':23} | gradients\n"
    f"{'':28} {'runs':>5} {'failed':>7} | {'median':>8} {'90%':>8} {'99%':>8} {'largest':>8} {'<=10':>6} {'<=100':>6}"
    f" | {'median':>8} {'90%':>8} {'99%':>8} {'largest':>8} | {'median':>8} {'/Dopri8':>8} {'geomean':>8} {'+Jac':>8}"
)


def row(name: str, records: list[dict[str, Any]]) -> str:
    """A line of the table: gradients over those of Dopri8 as median and geometric mean, and with Jacobians."""
    judged = [r for r in records if r.get("worst") is not None]
    text = f"{name:28} {len(records):5} {len(records) - len(judged):7} |"
    if not judged:
        return text
    for key in ("relative", "worst"):
        errors = np.array([r[key] for r in judged])
        values = (*np.quantile(errors, (0.5, 0.9, 0.99), method="inverted_cdf"), errors.max())
        text += "".join(f" {value:8.3g}" for value in values)
        if key == "relative":
            text += f" {100 * np.mean(errors <= 10):5.1f}% {100 * np.mean(errors <= 100):5.1f}%"
        text += " |"
    text += f" {np.median([r['gradients'] for r in judged]):8.0f}"
    compared = [r for r in judged if np.isfinite(r["dopri8"])]
    if not compared:
        return text
    gradients, work = (np.log([r[key] / r["dopri8"] for r in compared]) for key in ("gradients", "work"))
    return text + "".join(f" {np.exp(x):8.3g}" for x in (np.median(gradients), gradients.mean(), work.mean()))


def verdict(records: list[dict[str, Any]]) -> str:
    """Whether 99% of the runs that completed are within 10·A·rtol, and none beyond 100·A·rtol, in words."""
    errors = np.array([r["relative"] for r in records if r["relative"] is not None])
    beyond = [int((errors > limit).sum()) for limit in (10, 100)]
    kept = "kept" if beyond[0] <= 0.01 * errors.size and not beyond[1] else "not kept"
    counts = f"of {errors.size} runs that completed {beyond[0]} are beyond 10 A rtol, {beyond[1]} beyond 100 A rtol"
    return f"the tolerance is {kept}: {counts}"


def table(records: list[dict[str, Any]], worst: int = 20) -> Iterator[str]:
    """The lines of the table: references, then for each solver all runs and parts of them, and its worst."""
    yield from _references(records)
    by_solver = collections.defaultdict(list)
    for record in records:
        if record["reference"].startswith("good"):
            by_solver[record["solver"]].append(record)
    names = [name for name in EVERY if name in by_solver]
    yield HEADER
    yield from (row(name, by_solver[name]) for name in names)
    for name in names:
        yield f"\n{name}: {verdict(by_solver[name])}"
        for key in ("k", "order", "rtol", "family", "d", "steps"):
            parts = collections.defaultdict(list)
            for record in by_solver[name]:
                parts[record[key]].append(record)
            yield from (row(f"{name}, {key} {_short(part)}", parts[part]) for part in sorted(parts))
    for name in names:
        ends = collections.Counter(r["outcome"] for r in by_solver[name])
        yield f"\nruns of {name}: " + ", ".join(f"{count} {end}" for end, count in ends.most_common())
        judged = [r for r in by_solver[name] if r["worst"] is not None]
        judged.sort(key=lambda r: -r["relative"])
        yield f"the worst of {name}: seed, error / (A rtol), error / rtol"
        yield from map(_line, judged[:worst])


def _references(records: list[dict[str, Any]]) -> Iterator[str]:
    """What is known of the problems: references, amplification, and what solvers say of problems that diverge."""
    status = collections.Counter({r["seed"]: r["reference"] for r in records}.values())
    yield "references: " + ", ".join(f"{count} {name}" for name, count in status.most_common())
    sizes = np.array(
        list({r["seed"]: r["amplification"] for r in records if r["reference"].startswith("good")}.values())
    )
    if sizes.size:
        quantiles = np.quantile(sizes, (0.5, 0.9, 0.99), method="inverted_cdf")
        listed = ", ".join(f"{value:.3g}" for value in quantiles)
        yield f"amplification A: median, 90%, 99%: {listed}; largest {sizes.max():.3g}; 1 in {np.mean(sizes == 1):.0%}"
    ends = collections.Counter((r["solver"], r["outcome"]) for r in records if r["reference"] == DIVERGED)
    if ends:
        listed = ", ".join(f"{solver} {count} {end}" for (solver, end), count in sorted(ends.items()))
        yield f"of the problems that diverge: {listed}"


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, int | float) else str(value)


def _line(r: dict[str, Any]) -> str:
    names = ("learning_rate", "beta", "gamma", "weight_decay", "epsilon")
    settings = ", ".join(f"{name} {r[name]:.4g}" for name in names)
    return (
        f"  {r['seed']:6} {r['relative']:9.3g} {r['worst']:9.3g} at row {r['worst_at']:2}, A {r['amplification']:.3g}, "
        f"{r['family']}, d {r['d']}, k {r['k']}, order {r['order']}, {r['rate']} rate, {r['strategy']}, "
        f"rtol {r['rtol']:g}, {r['steps']} iterations, {settings}, {r['gradients']} gradients"
    )


def show_one(seed: int, solvers: list[str], cache: Path) -> None:
    """A problem in detail: settings, and for each solver the error at each saved iteration."""
    problem = draw(seed)
    reference = reference_of(problem, cache)
    print(json.dumps(problem.describe(), indent=1))
    print(f"reference: {reference.status}, A {reference.amplification:.4g}, growth {reference.growth:.4g}")
    print(f"  known to {reference.uncertainty:.2e} of the measure, rtol {problem.rtol:g}")
    if not reference.good:
        return
    for solver in solvers:
        given = asked(problem, solver)
        rows, cost = run(given, solver)
        print(f"{solver}: {cost}")
        errors = reference.errors(rows) / given.rtol
        print("  error / rtol: " + " ".join(f"{value:.2g}" for value in errors))


def _seeds(text: str) -> list[int]:
    first, _, last = text.partition(":")
    return list(range(int(first), int(last))) if last else [int(first)]


def _solvers(text: str) -> list[str]:
    names = [name for name in EVERY if name not in PRECISIONS] if text == "all" else text.lower().split(",")
    if unknown := sorted(set(names) - set(EVERY)):
        raise argparse.ArgumentTypeError(f"no solvers {', '.join(unknown)}; take some of {', '.join(EVERY)}, or all")
    return names


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=_seeds, default=_seeds("0:100"), help="a:b, by default 0:100")
    parser.add_argument(
        "--solvers", type=_solvers, default=["auto"], help=f"of {', '.join(EVERY)}; all: those without a precision"
    )
    parser.add_argument("--k", type=int, nargs="*", help="only problems with these numbers of stages")
    parser.add_argument("--d", type=int, nargs="*", help="only problems with these numbers of parameters")
    parser.add_argument("--order", type=int, nargs="*", help="only flows of these orders")
    parser.add_argument("--seconds", type=float, default=3600.0, help="begin no run after these, by default 3600")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes, by default one for a core")
    parser.add_argument("--cache", type=Path, default=Path("build/accuracy"), help="where references are kept")
    parser.add_argument("--out", type=Path, default=Path("build/accuracy/runs.jsonl"), help="a line for each run")
    parser.add_argument("--resume", action="store_true", help="keep what --out has, and run what it has not")
    parser.add_argument("--table", type=Path, nargs="+", help="run nothing; the table of these files")
    parser.add_argument("--one", type=int, help="one problem in detail, by its seed")
    given = parser.parse_args()
    if given.one is not None:
        show_one(given.one, given.solvers, given.cache)
        return
    if not given.table:
        shapes = {seed: shape_of(seed) for seed in given.seeds}
        wanted = ((given.k, "k"), (given.d, "dimension"), (given.order, "order"))
        seeds = [s for s, shape in shapes.items() if all(not v or getattr(shape, n) in v for v, n in wanted)]
        given.out.parent.mkdir(parents=True, exist_ok=True)
        if not given.resume:
            given.out.unlink(missing_ok=True)
        measure_all(seeds, given)
    print("\n".join(table(read(given.table or [given.out]))))


if __name__ == "__main__":
    main()
