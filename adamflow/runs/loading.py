"""Runs from the files that they were saved in."""

from pathlib import Path

from adamflow.checks import check_path
from adamflow.runs.trajectory import Trajectory
from adamflow.types import Params


def load(path: str | Path, *, like: Params = None, until: int | None = None) -> Trajectory:
    """The run that `Trajectory.save` wrote into a file, or `iterate(..., stream=)` into a folder.

    Numbers have the bits and types that they had. Of a run that was killed, the folder holds all that was written: its
    `outcome` is "interrupted", and `restart` says where it goes on.

    Args:
        path: of the file or folder.
        like: parameters of the structure of those of the run, with any numbers. Only needed where they are of classes
            of your own, such as an `equinox.Module`: dicts, lists and tuples are found in the file.
        until: of a folder, the iteration at which to end: one at which a file of it ends. So a run can be continued, or
            forked, from any of these.

    Returns:
        the run.

    Raises:
        FileNotFoundError: if there is nothing at that path, or no file of a run in the folder.
        ValueError: if it is no file of a run, of a newer version, or `like` is missing or of another structure.

    Example:
        >>> import adamflow as af, pathlib, tempfile
        >>> problem, path = af.problems.chain(3), pathlib.Path(tempfile.mkdtemp()) / "run.nc"
        >>> af.iterate(af.adam(1e-3), problem.loss, problem.params, 20).save(path)
        >>> params, start = af.load(path).restart
        >>> fork = af.iterate(af.adam(1e-2), problem.loss, params, 40, start=start)
        >>> int(fork.iterations[0]), int(fork.iterations[-1])
        (20, 40)
    """
    # With it comes xarray, which takes a part of a second to import.
    from adamflow.runs.storage import load_run

    return load_run(check_path("path", path), like, until)
