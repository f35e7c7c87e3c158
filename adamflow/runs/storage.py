"""Runs in files: netCDF, readable without this package, written at one stroke."""

import dataclasses
import importlib
import itertools
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr

from adamflow.checks import check_path, describe, is_concrete
from adamflow.runs.dataset import dataset_of
from adamflow.runs.summary import leaf_names
from adamflow.runs.trajectory import INTERRUPTED, Stats, Trajectory
from adamflow.types import Params

#: The version of the format, which a file has in its attribute "adamflow_format".
FORMAT = 1
#: What netCDF-3 calls this; every reader of netCDF knows it, and SciPy writes it.
_KIND: Any = "NETCDF3_64BIT"
_ENGINE: Any = "scipy"
_PATTERN = "run-{first:012d}-{last:012d}.nc"

_PARTS = ("iterations", "params", "observed", "initial_params", "final_state", "outcome", "stats", "error_estimate")


def save(run: Trajectory, path: str | Path, *, wanted: int | None = None) -> None:
    """Write a run into a file, as `Trajectory.save` describes.

    Args:
        run: a single run with known numbers.
        path: of the file; one that exists is replaced.
        wanted: for a piece of a run, the iteration at which the whole run is to end.
    """
    path = check_path("path", path)
    if not is_concrete(run):
        raise ValueError("save needs the numbers of a run, but jax is tracing it; call it outside of jit and vmap")
    if run.iterations.ndim != 1:
        raise ValueError(
            f"save takes a single run, got a batch of shape {run.iterations.shape[:-1]}; save them one by one, each by "
            "jax.tree.map(lambda leaf: leaf[i], run)"
        )
    if not path.parent.is_dir():
        raise FileNotFoundError(f"save cannot write {path}: there is no folder {path.parent}")
    writer = _Writer(dataset_of(run), jax.tree.structure(run.initial_params))
    parts = {name: writer.described(name, getattr(run, name)) for name in _PARTS}
    texts = {"name": run.name, "follows_mean": run.follows_mean, "filter_rate": run.filter_rate, "wanted": wanted}
    texts["is_told_to_start_later"] = run.outcome.is_told_to_start_later
    structure = {"parts": parts, "texts": texts, "params": _skeleton(writer.params)}
    attributes = {"adamflow_format": FORMAT, "adamflow_structure": json.dumps(structure)}
    _write(_storable(writer.data.assign_attrs(attributes)), path)


def load_run(path: Path, like: Params, until: int | None) -> Trajectory:
    """The run in a file or a folder, as `adamflow.load` describes."""
    if path.is_dir():
        return _load_folder(path, like, until)
    if until is not None:
        raise ValueError(f"until= is for a folder that iterate(..., stream=) wrote, but {path} is a file")
    return _load_file(path, like)[0]


def _load_folder(folder: Path, like: Params, until: int | None) -> Trajectory:
    files = files_of(folder)
    if not files:
        raise FileNotFoundError(
            f"the path {folder} holds no file of a run; give the folder that iterate(..., stream=) wrote"
        )
    if until is not None:
        ends = [last for _, last, _ in files]
        if until not in ends:
            raise ValueError(f"until must be an iteration at which a file of {folder} ends, {ends}, got {until!r}")
        files = files[: ends.index(until) + 1]
    for (_, end, _), (first, _, path) in itertools.pairwise(files):
        if end != first:
            raise ValueError(f"{path.name} does not begin where the file before it ends; a file of {folder} is missing")
    runs = [_load_file(path, like) for _, _, path in files]
    run, (last, wanted) = joined([run for run, _ in runs]), (files[-1][1], runs[-1][1])
    if wanted is None or last >= wanted or run.outcome.name != "completed":
        return run
    # The last file was complete, but not the run.
    code, reached = jnp.full_like(run.outcome.code, INTERRUPTED), run.outcome.last_valid_iteration - 1
    return dataclasses.replace(run, outcome=dataclasses.replace(run.outcome, code=code, last_valid_iteration=reached))


def files_of(folder: Path) -> list[tuple[int, int, Path]]:
    """The files of a run in a folder, each with the iterations at which it starts and ends."""
    found = []
    for path in sorted(folder.glob("run-*.nc")):
        first, last = path.stem.removeprefix("run-").split("-")
        found.append((int(first), int(last), path))
    return found


def file_for(folder: Path, first: int, last: int) -> Path:
    """The file of the iterations from first to last."""
    return folder / _PATTERN.format(first=first, last=last)


def joined(pieces: list[Trajectory]) -> Trajectory:
    """The run whose pieces these are, one after the other."""
    if len(pieces) == 1:
        return pieces[0]

    def stacked(*leaves: Any) -> Any:
        return jnp.concatenate([jnp.asarray(leaf) for leaf in leaves])

    rows = [(piece.iterations, piece.params, piece.observed) for piece in pieces]
    iterations, params, observed = jax.tree.map(stacked, *rows)
    last = pieces[-1]
    names = [field.name for field in dataclasses.fields(Stats)]
    stats = {}
    for name in names:
        values = [getattr(piece.stats, name) for piece in pieces]
        stats[name] = None if None in values else sum(values)
    return dataclasses.replace(
        last,
        iterations=iterations,
        params=params,
        observed=observed,
        initial_params=pieces[0].initial_params,
        stats=Stats(**stats),
    )


class _Writer:
    """Arrays of a run as variables of a Dataset, and their places as JSON."""

    def __init__(self, data: xr.Dataset, params: Any) -> None:
        self.data, self.params = data, params

    def described(self, name: str, tree: Any) -> Any:
        """What takes the place of a part of a run; its arrays become variables."""
        if tree is None or isinstance(tree, str | bool | int | float):
            return {"kind": "value", "value": tree}
        if _is_array(tree):
            return self._array(name, tree)
        if jax.tree.structure(tree) == self.params:
            return {"kind": "params", "leaves": self._leaves(name, tree)}
        if type(tree) is dict and all(isinstance(key, str) for key in tree):
            return {"kind": "dict", "items": {key: self.described(f"{name}.{key}", tree[key]) for key in tree}}
        if type(tree) in (list, tuple):
            items = [self.described(f"{name}.{index}", item) for index, item in enumerate(tree)]
            return {"kind": type(tree).__name__, "items": items}
        if dataclasses.is_dataclass(tree) and type(tree).__module__.startswith("adamflow."):
            fields = [field.name for field in dataclasses.fields(tree) if not field.metadata.get("static")]
            items = {field: self.described(f"{name}.{field}", getattr(tree, field)) for field in fields}
            return {"kind": "record", "class": [type(tree).__module__, type(tree).__qualname__], "items": items}
        return {"kind": "other", "leaves": self._leaves(name, tree), "names": leaf_names("", tree)}

    def _leaves(self, name: str, tree: Any) -> list[Any]:
        names = leaf_names(name, tree)
        return [self._array(leaf_name, leaf) for leaf_name, leaf in zip(names, jax.tree.leaves(tree), strict=True)]

    def _array(self, name: str, leaf: Any) -> Any:
        dtype = getattr(leaf, "dtype", np.dtype(object))
        if not any(jnp.issubdtype(dtype, kind) for kind in (jnp.floating, jnp.integer, jnp.bool_)):
            raise ValueError(f"save cannot write {name}, {describe(leaf)}; it takes real numbers")
        values = np.asarray(leaf)
        known = {"kind": "array", "dtype": str(jnp.result_type(leaf)), "shape": list(values.shape), "name": name}
        known["jax"] = isinstance(leaf, jax.Array)
        # What dataset_of has written is not written twice; netCDF-3 has no axes of length 0.
        if name not in self.data.variables and values.size:
            self.data[name] = ([f"{name}_dim_{axis}" for axis in range(values.ndim)], values)
        return known


def _is_array(value: Any) -> bool:
    return isinstance(value, jax.Array | np.ndarray | np.generic)


def _skeleton(structure: Any) -> Any:
    """The structure of the parameters as JSON, with numbers at its leaves; `None` where it has classes of others."""

    def encoded(node: Any) -> Any:
        if isinstance(node, int):
            return node
        if node is None:
            return {"kind": "none"}
        if type(node) is dict and all(isinstance(key, str) for key in node):
            return {"kind": "dict", "items": {key: encoded(value) for key, value in node.items()}}
        if type(node) in (list, tuple):
            return {"kind": type(node).__name__, "items": [encoded(item) for item in node]}
        raise TypeError

    try:
        return encoded(jax.tree.unflatten(structure, range(structure.num_leaves)))
    except Exception:
        return None


def _storable(data: xr.Dataset) -> xr.Dataset:
    """The Dataset in the types and names that netCDF-3 has: floats of 32 and 64 bits, whole numbers of 32."""
    limits = np.iinfo(np.int32)
    variables = {}
    for name, variable in data.variables.items():
        values = np.asarray(variable.values)
        if not values.size:
            # netCDF-3 takes an axis of length 0 for one that grows.
            continue
        if values.dtype.kind in "biu":
            wide = not (limits.min <= int(values.min()) and int(values.max()) <= limits.max)
            if wide and max(abs(int(values.min())), abs(int(values.max()))) > 2**53:
                raise ValueError(f"save cannot write {name}: netCDF-3 has no whole numbers beyond 2**53")
            values = values.astype(np.float64 if wide else np.int32)
        elif values.dtype.kind not in "U" and values.dtype not in (np.float32, np.float64):
            values = values.astype(np.float32)
        variables[name] = xr.Variable(variable.dims, values, variable.attrs, encoding={"_FillValue": None})
    renamed = {name: _stored_name(name) for name in {*variables, *(d for v in variables.values() for d in v.dims)}}
    attributes = {name: _attribute(value) for name, value in data.attrs.items()}
    coordinates = {name: variables.pop(name) for name in data.coords if name in variables}
    stored = xr.Dataset(variables, coordinates, attributes)
    return stored.rename({old: new for old, new in renamed.items() if old != new})


def _stored_name(name: Any) -> str:
    """A name without the characters that netCDF-3 does not take."""
    return str(name).replace("/", "|").replace("'", "`")


def _attribute(value: Any) -> Any:
    """A value as an attribute of netCDF-3, which has whole numbers of 32 bits."""
    is_wide = isinstance(value, int) and not isinstance(value, bool) and abs(value) > np.iinfo(np.int32).max
    return float(value) if is_wide else value


def _write(data: xr.Dataset, path: Path) -> None:
    """Write a file at one stroke: whoever reads finds the old file, or all of the new one."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".unfinished")
    os.close(handle)
    unfinished = Path(name)
    try:
        data.to_netcdf(unfinished, engine=_ENGINE, format=_KIND)
        with unfinished.open("rb+") as file:
            os.fsync(file.fileno())
        # mkstemp makes files for the owner alone.
        unfinished.chmod(0o666 & ~_umask())
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _load_file(path: Path, like: Params) -> tuple[Trajectory, int | None]:
    """The run of a file, and of a piece of a run the iteration at which the whole is to end."""
    if not path.exists():
        raise FileNotFoundError(f"there is no run at {path}")
    try:
        with xr.open_dataset(path, engine=_ENGINE, decode_cf=False, mask_and_scale=False) as data:
            data.load()
    except (TypeError, ValueError, OSError) as error:
        raise ValueError(f"{path} is no file of a run, or a damaged one: {str(error)[:120]}") from error
    version = data.attrs.get("adamflow_format")
    if version is None:
        raise ValueError(f"{path} is no file that Trajectory.save wrote; open it by xarray.open_dataset")
    if int(version) > FORMAT:
        raise ValueError(f"{path} has the format {int(version)}, and this version of adamflow reads up to {FORMAT}")
    structure = json.loads(data.attrs["adamflow_structure"])
    reader = _Reader(data, structure["params"], like)
    parts = {name: reader.restored(structure["parts"][name]) for name in _PARTS}
    texts = structure["texts"]
    wanted = texts.pop("wanted")
    told = texts.pop("is_told_to_start_later")
    outcome = dataclasses.replace(parts.pop("outcome"), is_told_to_start_later=told)
    return Trajectory(**parts, outcome=outcome, **texts), wanted


class _Reader:
    """Parts of a run from the variables of a Dataset."""

    def __init__(self, data: xr.Dataset, skeleton: Any, like: Params) -> None:
        self.data, self.skeleton, self.like = data, skeleton, like

    def restored(self, part: Any) -> Any:
        kind = part["kind"]
        if kind == "value":
            return part["value"]
        if kind == "array":
            return self._array(part)
        if kind == "params":
            return self._params(self._leaves(part))
        if kind == "other":
            return dict(zip(part["names"], self._leaves(part), strict=True))
        if kind == "dict":
            return {key: self.restored(item) for key, item in part["items"].items()}
        if kind in ("list", "tuple"):
            items = [self.restored(item) for item in part["items"]]
            return items if kind == "list" else tuple(items)
        module, name = part["class"]
        if not module.startswith("adamflow."):
            raise ValueError(f"the file asks for {module}.{name}, which is no class of adamflow")
        found = getattr(importlib.import_module(module), name)
        if not issubclass(found, eqx.Module):
            raise ValueError(f"the file asks for {module}.{name}, which is no record of adamflow")
        return found(**{field: self.restored(item) for field, item in part["items"].items()})

    def _leaves(self, part: Any) -> list[Any]:
        return [self._array(leaf) for leaf in part["leaves"]]

    def _array(self, part: Any) -> Any:
        name, shape = _stored_name(part["name"]), tuple(part["shape"])
        values = self.data[name].values if int(np.prod(shape)) else np.zeros(shape)
        dtype = jnp.dtype(part["dtype"])
        # NumPy's arrays have the byte order of netCDF.
        values = values.astype(dtype).reshape(shape)
        if not part["jax"]:
            return values
        array = jnp.asarray(values)
        if array.dtype != dtype:
            raise ValueError(
                f"{part['name']} was saved in {dtype}, but jax has no double precision here; enable it with "
                "jax.config.update('jax_enable_x64', True)"
            )
        return array

    def _params(self, leaves: list[Any]) -> Params:
        if self.like is not None:
            structure = jax.tree.structure(self.like)
            if structure.num_leaves != len(leaves):
                raise ValueError(f"like has {structure.num_leaves} leaves, but the parameters of the run {len(leaves)}")
            return jax.tree.unflatten(structure, leaves)
        if self.skeleton is None:
            raise ValueError(
                "the parameters of this run are made of classes that a file does not hold; give like=, parameters of "
                "the same structure with any numbers"
            )
        return self._filled(self.skeleton, leaves)

    def _filled(self, node: Any, leaves: list[Any]) -> Any:
        if isinstance(node, int):
            return leaves[node]
        if node["kind"] == "none":
            return None
        if node["kind"] == "dict":
            return {key: self._filled(item, leaves) for key, item in node["items"].items()}
        items = [self._filled(item, leaves) for item in node["items"]]
        return items if node["kind"] == "list" else tuple(items)
