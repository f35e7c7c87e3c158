"""A sweep in a folder: a zarr store whose chunks are those of the sweep, each with a checksum written last.

The arrays have the dimensions "chunk" and "slot", and a chunk's lanes stand in the array "lane". A chunk counts as
finished when its entry in "digest" is that of its numbers; that entry is written after them, and each file replaces the
one before as a whole. So a process may be killed at any moment, and a file may be damaged afterwards: what is not
finished is seen, and nothing else is computed again. The attributes hold the settings, twice.
"""

import contextlib
import hashlib
import importlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from adamflow.checks import describe
from adamflow.sweeps.grid import Grid, Zipped
from adamflow.sweeps.lanes import ERROR_LENGTH, Chunk, Layout, Plan
from adamflow.sweeps.results import CRASHED, RAISED, Variable, from_json, outcome_variable, to_json
from adamflow.sweeps.settings import difference

try:
    import fcntl
except ImportError:  # Windows, where nothing tells that a store is in use
    fcntl = None

#: The version of this layout; a store of another one is refused.
FORMAT = 1

_MARK = "adamflow_sweep"
_LANE = Variable((), (), "int64", {"long_name": "number of the lane, -1 where a chunk is not full"})
_ERROR = Variable(("byte",), (ERROR_LENGTH,), "uint8", {"long_name": "what a lane said that raised, in UTF-8"})


class SweepStoreError(RuntimeError):
    """The store of a sweep is of other settings, in use, or cannot be read or written."""


def zarr_module() -> Any:
    """zarr 3, or an error that says how to install it."""
    try:
        zarr = importlib.import_module("zarr")
    except ImportError as error:
        raise ImportError("store= needs zarr: pip install 'adamflow[sweeps]'") from error
    if int(zarr.__version__.split(".")[0]) < 3:
        raise ImportError(f"store= needs zarr 3, found {zarr.__version__}: pip install 'adamflow[sweeps]'")
    return zarr


def check_path(store: Any) -> Path:
    """The folder of a store, or a `ValueError` if it is none of this machine's files."""
    if not isinstance(store, str | os.PathLike) or not str(store):
        raise ValueError(f"store must be the path of a folder, such as 'runs.zarr', got {describe(store)}")
    if "://" in str(store):
        raise ValueError(f"store must be a folder of a file system, got {str(store)!r}; mount it, or copy it there")
    path = Path(store).expanduser().absolute()
    if path.exists() and not path.is_dir():
        raise ValueError(f"store {str(store)!r} is a file; name a folder, which is made if it is not there")
    return path


class Store:
    """The store of one sweep.

    Attributes:
        path: its folder.
        grid, plan: of the sweep.
        settings: what its numbers depend on.
        attributes: of its dataset.
        repaired: what was found damaged beside chunks, and made anew.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.repaired = path, []
        self._group = self._open()
        content = self._content()
        if content.get(_MARK) != FORMAT:
            raise SweepStoreError(
                f"{path} is a store of version {content.get(_MARK)!r}, but this adamflow reads version {FORMAT}; name "
                "another folder, or use the adamflow that made it"
            )
        self.settings: dict[str, str] = content["settings"]
        self.attributes: dict[str, Any] = content["attributes"]
        plan = content["plan"]
        schema = from_json(plan["schema"])
        self.plan = Plan(**plan | {"schema": schema, "fixed": tuple(plan["fixed"])})
        self.count: int = content["chunks"]
        self.grid = _grid_from(content["grid"])
        self.ordered: bool = content["ordered"]
        self.variables = _variables(self.plan)
        self._arrays = {name: self._array(name) for name in (*self.variables, "digest")}

    @classmethod
    def create(
        cls, path: Path, plan: Plan, layout: Layout, settings: Mapping[str, str], attributes: Mapping[str, Any]
    ) -> "Store":
        """A new store. It appears under its name as a whole; if another process was faster, it is that one's."""
        content = {
            _MARK: FORMAT,
            "settings": dict(settings),
            "plan": asdict(plan) | {"schema": to_json(plan.schema)},
            "attributes": dict(attributes),
            "chunks": layout.count,
            "ordered": layout.order is not None,
            "grid": _grid_words(layout.grid),
        }
        with _told(path, "cannot be made"):
            path.parent.mkdir(parents=True, exist_ok=True)
            building = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent))
            try:
                _build(building, content, plan)
                building.chmod(0o755)
                if not (path.is_dir() and any(path.iterdir())):
                    building.replace(path)
            finally:
                shutil.rmtree(building, ignore_errors=True)
        return cls(path)

    def check_settings(self, settings: Mapping[str, str], method: str, chunk: int | str) -> None:
        """Raise `SweepStoreError` unless a call has the settings of this store, and name what differs."""
        words = difference(self.settings, settings)
        for name, asked, here in (("method", method, self.plan.method), ("chunk", chunk, self.plan.chunk)):
            if words is None and asked not in ("auto", here):
                words = f"{name} was {here}, is {asked}"
        if words is not None:
            raise SweepStoreError(
                f"{self.path} holds a sweep of other settings: {words}. Name another folder, delete this one, or give "
                "the former settings; adamflow.sweeps.open_store reads it as it is"
            )

    def _open(self) -> Any:
        zarr = zarr_module()
        try:
            return zarr.open_group(self.path, mode="r+", zarr_format=3)
        except Exception:
            pass
        # The metadata of the group is gone or damaged: those of the digests hold the same.
        try:
            content = json.loads((self.path / "digest" / "zarr.json").read_text())["attributes"]
        except (OSError, ValueError, KeyError):
            raise SweepStoreError(
                f"{self.path} is no store of a sweep, or its zarr.json and that of digest are both missing or damaged; "
                "name another folder, or delete this one"
            ) from None
        (self.path / "zarr.json").unlink(missing_ok=True)
        self.repaired.append("zarr.json")
        return zarr.create_group(self.path, zarr_format=3, attributes=content)

    def _content(self) -> dict[str, Any]:
        content = dict(self._group.attrs)
        if _MARK not in content:
            raise SweepStoreError(f"{self.path} is a zarr store, but not of a sweep; name another folder")
        return content

    def _array(self, name: str) -> Any:
        """An array of the store; its metadata are made anew where they are damaged, and its chunks are kept."""
        try:
            return self._group[name]
        except Exception:
            (self.path / name / "zarr.json").unlink(missing_ok=True)
            self.repaired.append(f"{name}/zarr.json")
        if name == "digest":
            return _create_digest(self._group, self.count, dict(self._group.attrs))
        return _create(self._group, name, self.variables[name], self.count, self.plan.chunk)

    def write(self, number: int, chunk: Chunk) -> None:
        """Write a chunk, and then its checksum, which makes it count.

        Raises:
            SweepStoreError: if it cannot be written. The chunks before it remain.
        """
        values = {**chunk.values, "lane": chunk.lanes, "error": _as_bytes(chunk)}
        with _told(self.path, f"cannot take chunk {number}"):
            for name, variable in self.variables.items():
                self._arrays[name][number] = np.asarray(values[name]).astype(variable.dtype)
            digest = self.digest({name: values[name] for name in self.variables})
            self._arrays["digest"][number] = np.frombuffer(digest, np.uint8)

    def digest(self, values: Mapping[str, np.ndarray]) -> bytes:
        """The checksum of a chunk's numbers."""
        found = hashlib.sha256()
        for name, variable in sorted(self.variables.items()):
            found.update(name.encode())
            found.update(np.ascontiguousarray(values[name], variable.dtype).tobytes())
        return found.digest()

    def read(self, number: int) -> dict[str, np.ndarray]:
        """The numbers of a chunk."""
        return {name: np.asarray(self._arrays[name][number]) for name in self.variables}

    def state(self, number: int) -> str:
        """Whether a chunk is "finished", "missing" or "damaged"."""
        try:
            return "missing" if self.finished(number, all_of_it=True) is None else "finished"
        except Exception:
            return "damaged"

    def finished(self, number: int, all_of_it: bool) -> Chunk | None:
        """A chunk that is finished, verified if all of it is read, or only its outcomes; `None` if it is not.

        Raises:
            SweepStoreError, or another error of reading: if it is damaged.
        """
        written = np.asarray(self._arrays["digest"][number]).tobytes()
        if not any(written):
            return None
        if all_of_it:
            values = self.read(number)
            if self.digest(values) != written:
                raise SweepStoreError(f"chunk {number} of {self.path} is damaged")
        else:
            values = {name: np.asarray(self._arrays[name][number]) for name in ("lane", "outcome")}
        lanes, codes = values.pop("lane"), values["outcome"]
        failed = np.any((codes == RAISED) | (codes == CRASHED))
        texts = values.pop("error", None)
        errors = _from_bytes(lanes, np.asarray(self._arrays["error"][number]) if texts is None else texts)
        return Chunk(lanes, values, errors if failed else {})


@contextlib.contextmanager
def _told(path: Path, what: str) -> Iterator[None]:
    """An error of the file system in words."""
    try:
        yield
    except OSError as error:
        raise SweepStoreError(
            f"{path} {what}: {error.strerror or error}. What is finished there remains and can be read; free or name "
            "another place, and the same call goes on"
        ) from error


@contextlib.contextmanager
def alone(path: Path) -> Iterator[None]:
    """Hold a store while it is written; it is free again when this process ends in any way.

    Raises:
        SweepStoreError: if another process holds it.
    """
    if fcntl is None:
        yield
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SweepStoreError(
                f"{path} is in use by another process; wait until it ends, or name another folder"
            ) from None
        except OSError:  # a file system without locks: two processes then do the same work twice, to the same numbers
            pass
        for left in path.rglob("*.partial"):
            left.unlink(missing_ok=True)
        yield
    finally:
        os.close(handle)


def _variables(plan: Plan) -> dict[str, Variable]:
    return {"lane": _LANE, "outcome": outcome_variable(), "error": _ERROR, **plan.schema}


def _build(path: Path, content: dict[str, Any], plan: Plan) -> None:
    group = zarr_module().create_group(path, zarr_format=3, attributes=content)
    for name, variable in _variables(plan).items():
        _create(group, name, variable, content["chunks"], plan.chunk)
    _create_digest(group, content["chunks"], content)


def _create(group: Any, name: str, variable: Variable, count: int, chunk: int) -> Any:
    fill = -1 if name == "lane" else variable.fill
    fill = outcome_variable().attrs["flag_values"][-1] if name == "outcome" else fill
    return group.create_array(
        name,
        shape=(count, chunk, *variable.shape),
        chunks=(1, chunk, *(max(1, size) for size in variable.shape)),
        dtype=variable.dtype,
        fill_value=fill,
        dimension_names=("chunk", "slot", *variable.dims),
        attributes=variable.attrs,
    )


def _create_digest(group: Any, count: int, content: dict[str, Any]) -> Any:
    return group.create_array(
        "digest",
        shape=(count, 32),
        chunks=(1, 32),
        dtype="uint8",
        fill_value=0,
        dimension_names=("chunk", "digest_byte"),
        attributes=content,
    )


def _grid_words(grid: Grid) -> dict[str, Any]:
    """A grid as json; floats are written such that they are read as the same."""
    return {
        "sizes": grid.sizes,
        "axes": {name: [dim, values.dtype.str, values.tolist()] for name, (dim, values) in grid.axes.items()},
    }


def _grid_from(words: Mapping[str, Any]) -> Grid:
    axes = {name: (dim, np.asarray(values, dtype)) for name, (dim, dtype, values) in words["axes"].items()}
    along = {dim: {name: values for name, (of, values) in axes.items() if of == dim} for dim in words["sizes"]}
    return Grid({dim: found[dim] if dim in found else Zipped(found) for dim, found in along.items()})


def _as_bytes(chunk: Chunk) -> np.ndarray:
    found = np.zeros((len(chunk.lanes), ERROR_LENGTH), np.uint8)
    for lane, text in chunk.errors.items():
        content = np.frombuffer(text.encode()[:ERROR_LENGTH], np.uint8)
        found[np.flatnonzero(chunk.lanes == lane)[0], : len(content)] = content
    return found


def _from_bytes(lanes: np.ndarray, errors: np.ndarray) -> dict[int, str]:
    texts = {
        int(lane): bytes(row).rstrip(b"\0").decode(errors="ignore") for lane, row in zip(lanes, errors, strict=True)
    }
    return {lane: text for lane, text in texts.items() if lane >= 0 and text}
