"""Make the figures of the repository: all of them, or those that are named.

Each one runs in a process of its own, so that a failing figure does not stop the others. Two go on at once, each on a
share of the cores, and print what they have to say when they are done; those that took longest last time begin. The
exit status is 1 if one fails. With no flag this takes 14 minutes on 2 cores.
"""

import argparse
import json
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from adamflow.figures import cores, figure
from adamflow.figures.fast_compilation import compile_fast

#: Every figure has one script, figNN_name.py, beside this one.
SCRIPTS = {path.stem: path for path in sorted(Path(__file__).resolve().parent.glob("fig[0-9][0-9]_*.py"))}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the scripts, print a table, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="name", help=f"one of {', '.join(SCRIPTS)} (fig01 is enough); all")
    parser.add_argument("--jobs", type=int, help="how many at once (default: 2, or 1 on a single core)")
    figure.add_flags(parser)
    flags = parser.parse_args(argv)
    if flags.jobs is not None and flags.jobs < 1:
        parser.error(f"--jobs must be at least 1, got {flags.jobs}")
    mode, folder = figure.read_flags(flags, parser)
    chosen = sorted({find(name, parser) for name in flags.names} or SCRIPTS, key=last_seconds, reverse=True)
    jobs = min(flags.jobs or min(2, len(cores.available())), len(chosen))
    size = [] if mode == "default" else [f"--{mode}"]
    if mode == "quick":
        compile_fast()

    state = Progress(chosen, jobs)

    def make(name: str) -> tuple[str, float, int, str]:
        started, since = time.perf_counter(), time.time()
        state.start(name)
        command = [sys.executable, str(SCRIPTS[name]), *size, "--out", str(folder)]
        streams = {} if jobs == 1 else {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        run = subprocess.run(command, check=False, **streams)
        if jobs > 1:
            # A progress bar draws itself anew after each carriage return: only its last state counts.
            lines = (line.rsplit("\r", 1)[-1] for line in run.stdout.splitlines())
            print("\n".join([f"\n=== {name}: done", *lines, ""]), flush=True)
        state.end(name)
        return name, time.perf_counter() - started, run.returncode, claims(folder / f"{name}.json", since)

    with state, cores.workers(jobs) as pool:
        rows = sorted(pool.map(make, chosen))
    print(table(rows))
    return int(any(status for _, _, status, _ in rows))


class Progress:
    """One line on what runs, what is done and the time left: at each start, and every half minute between.

    Args:
        names: the figures, in the order in which they start.
        jobs: how many run at once.
    """

    INTERVAL = 30.0

    def __init__(self, names: Sequence[str], jobs: int) -> None:
        self.names, self.jobs = names, jobs
        self.expected = {name: last_seconds(name) for name in names}
        self.begun: dict[str, float] = {}
        self.took: dict[str, float] = {}
        self.lock, self.over = threading.Lock(), threading.Event()

    def __enter__(self) -> "Progress":
        self.thread = threading.Thread(target=self._tell_now_and_then, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.thread.join()

    def start(self, name: str) -> None:
        with self.lock:
            self.begun[name] = time.perf_counter()
        print(self.line(), flush=True)

    def end(self, name: str) -> None:
        with self.lock:
            self.took[name] = time.perf_counter() - self.begun.pop(name)

    def line(self) -> str:
        """What runs, what is done, and the time left as far as the last runs tell."""
        now = time.perf_counter()
        with self.lock:
            running = {name: now - since for name, since in self.begun.items()}
            took = dict(self.took)
        # How much slower this machine is than the one that made the files, from the figures that are done.
        known = sum(self.expected[name] for name in took)
        pace = sum(took.values()) / known if known else 1.0
        ahead = [pace * self.expected[name] for name in self.names if name not in took]
        left = sum(ahead) - sum(min(seconds, pace * self.expected[name]) for name, seconds in running.items())
        names = ", ".join(f"{name} ({seconds:.0f} s)" for name, seconds in running.items())
        return (
            f"=== {len(took)} of {len(self.names)} figures done; running {names}; about {left / self.jobs:.0f} s left"
        )

    def _tell_now_and_then(self) -> None:
        while not self.over.wait(self.INTERVAL):
            print(self.line(), flush=True)


def find(name: str, parser: argparse.ArgumentParser) -> str:
    """The figure of that name or number; exits with a list of all if there is none."""
    stem = Path(name).stem
    for known in SCRIPTS:
        if stem in (known, known.split("_")[0]):
            return known
    parser.error(f"there is no figure {name!r}; the figures are: {', '.join(SCRIPTS)}")


def last_seconds(name: str) -> float:
    """How long a figure took when it was last made for the repository; 0 if it never was."""
    manifest = figure.FOLDERS["default"] / f"{name}.json"
    try:
        return float(sum(json.loads(manifest.read_text())["seconds"].values()))
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        # Missing, or damaged: the order of the figures is no reason to make none.
        return 0.0


def claims(manifest: Path, since: float) -> str:
    """How many claims hold, from the manifest that a run wrote; "-" if it wrote none."""
    if not manifest.exists() or manifest.stat().st_mtime < since - 1:
        return "-"
    held = [claim["holds"] for claim in json.loads(manifest.read_text())["claims"]]
    return f"{sum(held)} of {len(held)}"


def table(rows: Sequence[tuple[str, float, int, str]]) -> str:
    """The runs, one per line, with seconds and outcome."""
    width = max(len(name) for name, *_ in rows)
    lines = [f"\n{'figure':{width}}  seconds  claims that hold  outcome"]
    for name, seconds, status, held in rows:
        outcome = "made" if status == 0 else f"FAILED with status {status}: see its messages above"
        lines.append(f"{name:{width}}  {seconds:7.1f}  {held:>16}  {outcome}")
    total = sum(seconds for _, seconds, _, _ in rows)
    return "\n".join([*lines, f"{'all':{width}}  {total:7.1f}"])


if __name__ == "__main__":
    sys.exit(main())
