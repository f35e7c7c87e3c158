# pyright: reportUnnecessaryTypeIgnoreComment=true
"""Types of the public API: none is a bare `Any` without a reason, what users have passes, and what is wrong does not.

pyright reads this file, too: a call that it should refuse and does not is an unnecessary comment, which is an error.
"""

import fnmatch
import importlib
import inspect
import types
from collections.abc import Callable, Iterator
from typing import Any, Union, get_args, get_origin

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jaxtyping import TypeCheckError

import adamflow as af
from adamflow.types import Scalar

LAYERS = ("advice", "analysis", "flows", "noise", "optimizers", "plotting", "problems", "runs", "sweeps")

#: Where `Any` is the truth, by module, name and argument, and why.
MAY_BE_ANY = {
    "*.options": "arguments for another function, which has their types",
    "*.SweepAccessor.rerun.return": "what the function of the sweep returns",
    "*.sweep.client": "a client of dask, which is an extra",
    "*.StageInput.*": "a leaf for a stage that asks for it; `None` for others, which do not read it",
    "*.GradientNoise.__init__.*": "an array or `None`, which of them follows from the kind of noise",
    "*.Stats.__init__.gradient_evaluations": "`None` is rare, and most who read it know that it is a number",
    "*.Outcome.*.return": "a word for a run, many for a batch",
}


def is_any(annotation: Any) -> bool:
    """Whether a type is `Any`, or a union with it, which checks as little."""
    is_union = get_origin(annotation) in (Union, types.UnionType)
    return annotation in (Any, "Any") or (is_union and Any in get_args(annotation))


def functions_of(thing: Any) -> Iterator[tuple[str, Callable[..., Any]]]:
    """The functions behind a public name: itself, or the methods and properties of a class, with their names."""
    if inspect.isfunction(thing):
        yield "", thing
    if not inspect.isclass(thing):
        return
    for name, value in vars(thing).items():
        if name.startswith("_") and name not in ("__init__", "__new__", "__call__"):
            continue
        function = getattr(value, "__func__", None) or getattr(value, "fget", None) or getattr(value, "func", value)
        if inspect.isfunction(function):
            yield f".{name}", function


def annotations(modules: list[types.ModuleType]) -> dict[str, Any]:
    """Each argument and result of the public functions and classes of modules, and its type."""
    found = {}
    for module in modules:
        for name in module.__all__:
            thing = getattr(module, name)
            if not str(getattr(thing, "__module__", "")).startswith(module.__name__.partition(".")[0]):
                continue
            for part, function in functions_of(thing):
                signature = inspect.signature(function)
                where = f"{thing.__module__}.{name}{part}"
                found[f"{where}.return"] = signature.return_annotation
                found |= {f"{where}.{key}": value.annotation for key, value in signature.parameters.items()}
    return found


def test_identity_every_public_type_is_said_or_has_a_reason():
    found = annotations([af, *(importlib.import_module(f"adamflow.{layer}") for layer in LAYERS)])
    assert len(found) > 1000
    bare = {where for where, annotation in found.items() if is_any(annotation)}
    unexplained = {where for where in bare if not any(fnmatch.fnmatchcase(where, pattern) for pattern in MAY_BE_ANY)}
    assert not unexplained, f"these are Any; give them a type, or a reason in MAY_BE_ANY: {sorted(unexplained)}"
    unused = [pattern for pattern in MAY_BE_ANY if not fnmatch.filter(bare, pattern)]
    assert not unused, f"nothing is Any any more at {unused}"


def test_failure_a_bare_any_is_found():
    def public(said: int, bare: Any, half: int | Any) -> Any: ...

    class Public(eqx.Module):
        field: int = eqx.field(converter=lambda value: value)

        @property
        def part(self) -> Any: ...

    public.__module__ = Public.__module__ = "made.up"
    module = types.ModuleType("made")
    vars(module).update(__all__=["public", "Public"], public=public, Public=Public)
    bare = {where for where, annotation in annotations([module]).items() if is_any(annotation)}
    functions = {"made.up.public.bare", "made.up.public.half", "made.up.public.return"}
    assert bare == functions | {"made.up.Public.__init__.field", "made.up.Public.part.return"}


def test_identity_signatures_show_types_by_their_names():
    assert str(inspect.signature(af.adam)).startswith("(learning_rate: Setting, *, beta: Scalar = 0.999")
    assert "save_at: Optional[ArrayLike]" in str(inspect.signature(af.iterate)).replace("adamflow.types.", "")


class WarmUp(eqx.Module):
    """A schedule whose number is an input of programs."""

    top: jax.Array

    def __call__(self, iteration: Scalar) -> jax.Array:
        return self.top * jnp.minimum(jnp.asarray(iteration) / 10, 1.0)


def decaying(iteration: int) -> float:
    return 0.1 / (iteration + 1)


def test_identity_every_form_of_a_learning_rate_has_the_type():
    nested: dict[str, dict[str, float]] = {"in": {"w": 0.1}, "out": {"w": 0.2}}
    arrays: dict[str, jax.Array] = {"w": jnp.asarray(0.1)}
    made = [
        af.adam(0.1),
        af.adam(1),
        af.adam(np.float32(0.1)),
        af.adam(np.float64(0.1)),
        af.adam(np.int32(1)),
        af.adam(np.asarray([0.1, 0.2])),
        af.adam(jnp.asarray(0.1)),
        af.adam(optax.linear_schedule(0.0, 0.1, 10)),
        af.adam(optax.cosine_decay_schedule(0.1, 100)),
        af.adam(WarmUp(jnp.asarray(0.1))),
        af.adam(decaying),
        af.adam(lambda n: 0.1 / (n + 1)),
        af.adam({"w": 0.1, "b": np.float32(0.2)}),
        af.adam({"w": optax.constant_schedule(0.1), "b": 0.2}),
        af.adam(nested),
        af.adam(arrays),
        af.adam(af.by_leaf(arrays, times=optax.constant_schedule(0.1))),
        af.adam(af.by_leaf([0.1, np.float32(0.2)])),
        af.adam(af.by_leaf(lambda params: jax.tree.map(lambda leaf: 0.1, params))),
        af.adamw(0.1, weight_decay=optax.constant_schedule(0.1)),
        af.Optimizer(0.1, [af.AdamStage(beta=np.float32(0.9), gamma=jnp.asarray(0.9))], l2=0.1, clip_norm=1),
    ]
    assert all(isinstance(optimizer, af.Optimizer) for optimizer in made)
    # What is stored is read without a check of its kind.
    assert float(af.adam(np.float32(0.5)).learning_rate / 2) == 0.25


def test_identity_every_form_of_an_array_has_the_type():
    problem, optimizer = af.problems.quadratic([1.0, 2.0]), af.adam(1e-2)
    for times in ([0, 2, 4], (0.0, 2.0, 4.0), range(0, 5, 2), np.arange(0, 5, 2), jnp.arange(0, 5, 2)):
        run = af.iterate(optimizer, problem.loss, problem.params, 4, save_at=times)
        assert run.iterations.tolist() == [0, 2, 4]
    matrix = [[1.0, 0.3], [0.3, 0.5]]
    expected = af.noise.anisotropic(matrix)
    assert np.array_equal(af.noise.anisotropic(np.asarray(matrix)), expected)
    assert np.array_equal(af.noise.anisotropic(jnp.asarray(matrix)), expected)
    axes = af.zip_axes(beta=[0.9, 0.99], name=["a", "b"], x=np.linspace(0, 1, 2), y=jnp.ones(2), n=range(2))
    assert axes.length == 2
    assert run.outcome.successful
    assert run.outcome.message.upper().startswith("COMPLETED")
    assert int(run.stats.gradient_evaluations) == int(run.stats.accepted_steps) == 4


def test_failure_checkers_refuse_what_is_no_number():
    optimizer, problem = af.adam(0.1), af.problems.quadratic([1.0])
    with pytest.raises(TypeCheckError, match="learning_rate"):
        af.adam("0.1")  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeCheckError, match="learning_rate"):
        af.adam(None)  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeCheckError, match="weight_decay"):
        af.sgd(0.1, weight_decay=[0.1])  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeCheckError, match="beta"):
        af.adam(0.1, beta="0.9")  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeCheckError, match="gamma"):
        af.AdamStage(beta=0.9, gamma="0.9")  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeCheckError, match="stages"):
        af.Optimizer(0.1, af.AdamStage(beta=0.9, gamma=0.9))  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeCheckError, match="order"):
        af.GouldTanakaFlow(optimizer, order="two")  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeCheckError, match="save_at"):
        af.iterate(optimizer, problem.loss, problem.params, 4, save_at=object())  # pyright: ignore[reportArgumentType]
