"""Compute, check, draw and write one figure: flags, settings, files, the manifest, claims, bars and style.

A script defines three settings and three functions, and hands them to `main`:

    if __name__ == "__main__":
        sys.exit(figure.main(__file__, __doc__, CONFIGS, compute, check, draw))

Each run writes NAME.png, NAME.pdf, NAME.npz (the data) and NAME.json (the manifest), where NAME is that of the script's
file, and exits with status 1 if a claim does not hold on the data that it just computed. The four files appear together
or not at all (`publish`). Settings are changed by `--set steps=300`. With `--redraw` the data are those of the npz in
the folder, whose claims are checked and whose picture is drawn again.
"""

import argparse
import ast
import dataclasses
import importlib.metadata
import io
import json
import math
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import jax
import matplotlib
import matplotlib.pyplot as plt
import numpy as np
from cycler import cycler
from matplotlib.figure import Figure
from tqdm import tqdm

from adamflow.figures import cores, legibility
from adamflow.figures.fast_compilation import compile_fast
from adamflow.plotting.colours import LINES

_CLONE = Path(__file__).resolve().parents[2]
#: Where figures and what is left of unfinished ones go: into the clone that adamflow runs from, or the current folder.
ROOT = _CLONE if (_CLONE / "scripts").is_dir() else Path.cwd()
MODES = ("quick", "default", "full")
#: Where each mode writes: only the default one replaces the figures of the repository.
FOLDERS = {
    "quick": ROOT / "build" / "figures-quick",
    "default": ROOT / "figures",
    "full": ROOT / "build" / "figures-full",
}
#: Where figures with changed settings go.
CHANGED = ROOT / "build" / "figures-set"
#: Where the data go of figures that could not be finished.
UNFINISHED = ROOT / "build" / "unfinished"
PACKAGES = ("jax", "jaxlib", "diffrax", "equinox", "optax", "numpy", "matplotlib")

STYLE: Any = {
    "axes.prop_cycle": cycler(color=LINES),
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 10,
    "axes.labelsize": 9,
    "figure.constrained_layout.use": True,
    "figure.dpi": 100,
    "figure.titlesize": 12,
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "grid.alpha": 0.25,
    "grid.linewidth": 0.6,
    "image.cmap": "viridis",
    "legend.fontsize": 8,
    "legend.framealpha": 0.9,
    "lines.linewidth": 1.5,
    "pdf.fonttype": 42,
    "savefig.dpi": 200,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
}

#: The settings of a figure: a frozen dataclass of the script's own.
Config = TypeVar("Config")
Data = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Claim:
    """A statement about the data of a figure.

    Attributes:
        sentence: in words, with the threshold that decides.
        holds: whether it holds on the data.
        numbers: what was measured, by name, thresholds included.
    """

    sentence: str
    holds: bool
    numbers: dict[str, float]

    def __str__(self) -> str:
        numbers = ", ".join(f"{name} = {float(value):.6g}" for name, value in self.numbers.items())
        text = f"{'holds' if self.holds else 'DOES NOT HOLD'}: {self.sentence}"
        return textwrap.fill(f"{text} ({numbers})" if numbers else text, 118, subsequent_indent="    ")


def main(
    script: str,
    script_doc: str | None,
    configs: Mapping[str, Config],
    compute: Callable[[Config], Mapping[str, Any]],
    check: Callable[[Data], Sequence[Claim]],
    draw: Callable[[Data], Figure | Mapping[str, Figure]],
    argv: Sequence[str] | None = None,
    *,
    compiles_much: bool = False,
) -> int:
    """Compute, check, draw and write one figure.

    Args:
        script: the script's `__file__`, whose name is that of the files.
        script_doc: the script's docstring, shown by --help.
        configs: settings for "quick", "default" and "full"; every field is recorded in the manifest.
        compute: from the settings to arrays by name. It gets nothing else, so the settings determine the data.
        check: from these arrays to the claims of the figure, at least one.
        draw: from these arrays to a matplotlib figure, made under `STYLE`, of at most six panels with at most five
            lines each; or to several by name, where "" is that one, and the others, such as "all", show the rest.
        argv: the flags, by default those of the process.
        compiles_much: whether most of the time goes into compilation, so that programs which XLA compiles fast, and
            runs slower, end earlier; not with --full. Nothing may have been computed by jax before.

    Returns:
        the exit status: 0, or 1 if a claim does not hold; everything is written in either case. 1 also where the files
        cannot be written; then those of the run before stay as they are.

    Raises:
        ValueError: if a mode lacks its settings, the data are no plain arrays, or there is no claim.
        SystemExit: with status 2, if a flag is wrong or the folder cannot be written, before anything is computed.
    """
    if set(configs) != set(MODES):
        raise ValueError(f"configs must have the keys {MODES}, got {tuple(configs)}")
    name = Path(script).stem
    parser = argparse.ArgumentParser(description=script_doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_flags(parser)
    parser.add_argument(
        "--set",
        metavar="NAME=VALUE",
        action="append",
        default=[],
        help=f"change a setting; may be repeated; files then go to {CHANGED.relative_to(ROOT)}/ unless --out is given",
    )
    parser.add_argument(
        "--redraw", action="store_true", help="check and draw the data that are in the folder; compute nothing"
    )
    flags = parser.parse_args(argv)
    if flags.redraw and flags.set:
        parser.error("--redraw draws the data that are there, so no setting can be changed; leave out --set")
    mode, folder = read_flags(flags, parser, CHANGED if flags.set else None)
    if flags.redraw:
        recover(folder, name)
        return _redraw(folder / name, parser, check, draw)
    try:
        config = changed(configs[mode], flags.set)
    except ValueError as error:
        parser.error(str(error))
    recover(folder, name)
    if compiles_much and mode != "full":
        compile_fast()
    manifest = _manifest(name, mode, config)
    print(f"{name}, {mode} settings: {_words(manifest['settings'])}", flush=True)

    started = time.perf_counter()
    data = _plain(compute(config))
    manifest["seconds"]["compute"] = round(time.perf_counter() - started, 2)
    files = {"npz": _in_memory(lambda file: np.savez_compressed(file, allow_pickle=False, **data))}
    return _finish(manifest, data, files, folder / name, check, draw)


def _redraw(stem: Path, parser: argparse.ArgumentParser, check: Callable[..., Any], draw: Callable[..., Any]) -> int:
    """Check and draw the data of a figure that are in files; the manifest keeps what determined them."""
    try:
        content = stem.with_suffix(".npz").read_bytes()
        manifest = json.loads(stem.with_suffix(".json").read_text())
    except (OSError, ValueError) as error:
        parser.error(f"--redraw needs {stem}.npz and .json: {error}; without the flag they are computed")
    with np.load(io.BytesIO(content), allow_pickle=False) as file:
        data = dict(file)
    commit, dirty = _revision()
    manifest["drawn_with"] = {
        "commit": commit,
        "uncommitted_changes": dirty,
        "matplotlib": importlib.metadata.version("matplotlib"),
    }
    print(f"{stem.name}, drawn again from {stem}.npz", flush=True)
    return _finish(manifest, data, {"npz": content}, stem, check, draw)


def _finish(
    manifest: dict[str, Any],
    data: Data,
    files: dict[str, bytes],
    stem: Path,
    check: Callable[[Data], Sequence[Claim]],
    draw: Callable[[Data], Figure | Mapping[str, Figure]],
) -> int:
    """Check and draw the data, publish the files, and return the exit status."""
    folder, name = stem.parent, stem.name
    try:
        claims = check(data)
        if not claims:
            raise ValueError(f"{name} checks no claim; a figure states at least one")
        started = time.perf_counter()
        pictures, faults = _draw(draw, data)
        files |= pictures
    except BaseException:
        _keep_data(name, files["npz"])
        raise
    manifest["seconds"]["draw"] = round(time.perf_counter() - started, 2)
    manifest["claims"] = [_record(claim) for claim in claims]
    manifest["faults_of_pictures"] = faults
    files["json"] = _as_json(manifest)
    try:
        publish(folder, name, files)
    except OSError as error:
        reason = f"{name} cannot be written to {folder}: {error.strerror or error}; the files there are as they were"
        print(f"\n!!! {reason}", file=sys.stderr)
        _keep_data(name, files["npz"])
        return 1
    return _conclude(manifest, claims, folder / name)


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The flags that every figure, and the script that makes all of them, understands."""
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help="small settings: a check that the figure can be made")
    size.add_argument("--full", action="store_true", help="the largest settings: much longer")
    folders = ", ".join(f"{folder.relative_to(ROOT)}/ ({mode})" for mode, folder in FOLDERS.items())
    parser.add_argument("--out", metavar="DIR", help=f"where files go; in the repository, {folders}")


def changed(config: Config, changes: Sequence[str]) -> Config:
    """The settings with some of them changed.

    Args:
        config: a dataclass.
        changes: "name=value" for each, where the value is a Python literal, such as 300, 1e-3, (1, 2) or a word.

    Raises:
        ValueError: a change has another form, or there is no such setting, or the value is of another type.
    """
    present = dataclasses.asdict(config)  # pyright: ignore[reportArgumentType]
    values = {}
    for change in changes:
        name, equals, text = change.partition("=")
        if not equals or not text:
            raise ValueError(f"--set takes NAME=VALUE, got {change!r}; for instance --set {next(iter(present))}=...")
        if name not in present:
            raise ValueError(f"there is no setting {name!r}; this figure has {_words(present)}")
        try:
            value = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            value = text
        kind = type(present[name])
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if present[name] is not None and type(value) is not kind:
            raise ValueError(f"--set {name} must be of type {kind.__name__}, like {present[name]!r}, got {text!r}")
        values[name] = value
    return dataclasses.replace(config, **values)  # pyright: ignore[reportArgumentType]


def read_flags(
    flags: argparse.Namespace, parser: argparse.ArgumentParser, default: Path | None = None
) -> tuple[str, Path]:
    """The mode and the folder for the files, which is made; an error of the parser if nothing can be written there."""
    mode = "quick" if flags.quick else "full" if flags.full else "default"
    if flags.out == "":
        parser.error("--out must be a folder, got an empty name; for the current folder use --out .")
    try:
        folder = Path(flags.out or default or FOLDERS[mode]).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"a figure")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        parser.error(f"--out {str(flags.out or FOLDERS[mode])!r} is no folder to write to: {reason}; name another")
    return mode, folder


def progress(items: Iterable[Any] | None = None, describe: str = "", *, total: int | None = None, unit: str = "run"):
    """A bar over items, for loops that take more than a few seconds; or one to `update()`, with `total` and no items.

    Args:
        items: what to iterate over.
        describe: what is being done, shown at the left; `bar.set_postfix_str` adds what is being done now.
        total: how many steps there are, where items do not tell.
        unit: what one item is.
    """
    # A log file gets few lines, a terminal smooth motion.
    interval = 0.2 if sys.stderr.isatty() else 10.0
    return tqdm(items, desc=describe, total=total, unit=unit, mininterval=interval, dynamic_ncols=True)


def write(path: Path, save: Callable[[BinaryIO], Any]) -> None:
    """Let `save` fill a temporary file beside `path`, then rename it: readers see the old file or the whole new one."""
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            save(file)
        mask = os.umask(0)
        os.umask(mask)
        Path(temporary).chmod(0o666 & ~mask)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def publish(folder: Path, name: str, files: Mapping[str, bytes]) -> None:
    """Replace the files of a figure, all of them or none.

    They are written to a hidden folder first, which is then renamed: from there on they count as published, and a run
    that is killed while it moves them into place is completed by the next `recover`. A full disk, or a kill before,
    leaves the old files as they were.

    Args:
        folder: where the files belong.
        name: of the figure.
        files: the content by ending.

    Raises:
        OSError: a file cannot be written; nothing has changed then.
    """
    recover(folder, name)
    staged = Path(tempfile.mkdtemp(prefix=f".{name}.{os.getpid()}.", suffix=".tmp", dir=folder))
    try:
        for ending, content in files.items():
            with (staged / f"{name}.{ending}").open("xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        staged.rename(folder / f".{name}.complete")
    except BaseException:
        shutil.rmtree(staged, ignore_errors=True)
        raise
    recover(folder, name)


def recover(folder: Path, name: str) -> None:
    """Finish what a killed run of a figure has left: move complete sets of files into place, remove incomplete ones."""
    complete = folder / f".{name}.complete"
    if complete.is_dir():
        for path in sorted(complete.iterdir()):
            path.replace(folder / path.name)
        complete.rmdir()
    for left in folder.glob(f".{name}.*.tmp"):
        owner = left.name.removeprefix(f".{name}.").split(".")[0]
        if left.is_dir() and owner.isdigit() and not _runs(int(owner)):
            shutil.rmtree(left, ignore_errors=True)


def _runs(process: int) -> bool:
    """Whether a process of that number runs, here: on a folder shared by machines, files of others may be removed."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _keep_data(name: str, content: bytes) -> None:
    """Write the data of a figure that was not finished into build/, since they may have taken hours."""
    path = UNFINISHED / f"{name}.npz"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(path, lambda file: file.write(content))
    except OSError as error:
        print(f"!!! the data of {name} cannot be kept in {path}: {error.strerror or error}", file=sys.stderr)
    else:
        print(f"!!! the data of {name} are kept in {path}", file=sys.stderr)


def _in_memory(save: Callable[[BinaryIO], Any]) -> bytes:
    """What `save` writes to a file."""
    file = io.BytesIO()
    save(file)
    return file.getvalue()


def _draw(
    draw: Callable[[Data], Figure | Mapping[str, Figure]], data: Data
) -> tuple[dict[str, bytes], dict[str, list[str]]]:
    """The pictures by ending, and what is hard to read in each."""
    matplotlib.use("Agg")
    # Without a date, equal data and versions give equal files.
    metadata = {"png": {}, "pdf": {"CreationDate": None}}
    pictures, faults = {}, {}
    with plt.rc_context(STYLE):
        drawn = draw(data)
        for name, picture in {"": drawn}.items() if isinstance(drawn, Figure) else drawn.items():
            begin = f"{name}." if name else ""
            for ending, entries in metadata.items():
                pictures[begin + ending] = _in_memory(
                    lambda file, picture=picture, ending=ending, entries=entries: picture.savefig(
                        file, format=ending, metadata=entries
                    )
                )
            faults[begin + "png"] = legibility.faults(picture, few=not name)
            plt.close(picture)
    return pictures, faults


def _conclude(manifest: dict[str, Any], claims: Sequence[Claim], stem: Path) -> int:
    """Print the claims in words and where the files are, loudly if one fails; return the exit status."""
    seconds = manifest["seconds"]
    failed = [claim for claim in claims if not claim.holds]
    held = f"{len(claims) - len(failed)} of {len(claims)} claims hold"
    print(f"\n{stem.name}: {held}; {seconds['compute']} s to compute, {seconds['draw']} s to draw")
    for number, claim in enumerate(claims, 1):
        print(f"  {number}. {claim}")
    print(f"  Written: {stem}.png, .pdf, .npz, .json", flush=True)
    for picture, faults in manifest["faults_of_pictures"].items():
        for fault in faults:
            print(f"  Hard to read in {stem.name}.{picture}: {fault}")
    for claim in failed:
        print(f"\n!!! {stem.name}: a claim does not hold on the data just computed:\n!!! {claim}", file=sys.stderr)
    return int(bool(failed))


def _manifest(name: str, mode: str, config: Any) -> dict[str, Any]:
    """What determines the data, as json."""
    settings = dataclasses.asdict(config)
    commit, dirty = _revision()
    return {
        "figure": name,
        "mode": mode,
        "settings": settings,
        "seed": settings.get("seed"),
        "versions": {"python": platform.python_version()}
        | {package: importlib.metadata.version(package) for package in ("adamflow", *PACKAGES)},
        "commit": commit,
        "uncommitted_changes": dirty,
        "platform": {
            "system": platform.platform(),
            "processors": len(cores.available()),
            "jax_backend": jax.default_backend(),
            "jax_enable_x64": bool(jax.config.read("jax_enable_x64")),
            "xla_flags": os.environ.get("XLA_FLAGS", ""),
        },
        "seconds": {},
    }


def _revision() -> tuple[str | None, bool | None]:
    """The commit and whether the tree differs from it, the figures themselves apart; `None` where git cannot tell."""

    def git(*arguments: str) -> str | None:
        try:
            run = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, timeout=30)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return run.stdout.strip() if run.returncode == 0 else None

    top = git("rev-parse", "--show-toplevel")
    if top is None or Path(top).resolve() != ROOT:
        return None, None
    changes = git("status", "--porcelain", "--", ".", ":(exclude)figures")
    return git("rev-parse", "--verify", "--quiet", "HEAD"), None if changes is None else bool(changes)


def _plain(data: Mapping[str, Any]) -> Data:
    arrays = {name: np.asarray(value) for name, value in data.items()}
    for name, array in arrays.items():
        if array.dtype.hasobject:
            raise ValueError(f"data[{name!r}] must be a plain array, got one of Python objects; a pickle is no result")
    return arrays


def _record(claim: Claim) -> dict[str, Any]:
    """A claim as json, which has no word for inf and nan: these become strings."""
    numbers = {name: float(value) for name, value in claim.numbers.items()}
    numbers = {name: value if math.isfinite(value) else str(value) for name, value in numbers.items()}
    return {"sentence": claim.sentence, "holds": bool(claim.holds), "numbers": numbers}


def _words(settings: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in settings.items())


def _as_json(content: dict[str, Any]) -> bytes:
    return (json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False, default=str) + "\n").encode()
