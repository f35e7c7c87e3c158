"""Generated inputs for everything public, with one rule: a true result, or an error that names the argument.

    python tests/fuzz.py                                  # every part, at most 10 minutes
    python tests/fuzz.py --parts problems plots --count 500 --seed 3
    python tests/fuzz.py --parts runs --seed 0 --only 17  # one input again

Input number i of a part is determined by the seed, the part and i. What is true is known for each: a closed form, a
recursion in NumPy, shapes, finiteness. Exit status 1 with a list of violations, each with what repeats it. pytest does
not collect this file. Runs share few structures of optimizers, and so few compiled programs.
"""

import argparse
import collections
import decimal
import os
import random
import re
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("MPLBACKEND", "Agg")

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from jax.flatten_util import ravel_pytree

import adamflow as af

#: What stands in the place of an argument that should be a number, a sequence or a name.
GARBAGE: tuple[Callable[[], Any], ...] = (
    lambda: None,
    lambda: "0.1",
    lambda: "",
    lambda: b"1",
    lambda: [],
    lambda: {},
    lambda: np.array([]),
    lambda: np.array([0.1, 0.2]),
    lambda: [[1.0], [1.0, 2.0]],
    lambda: np.array("x"),
    lambda: np.nan,
    lambda: np.inf,
    lambda: -np.inf,
    lambda: -1.0,
    lambda: 1j,
    lambda: 2**63,
    lambda: 10**400,
    lambda: decimal.Decimal("0.1"),
    lambda: jax.random.key(0),
    lambda: object(),
    lambda: len,
    lambda: np.array([0.5], ">f8"),
    lambda: np.longdouble(0.25),
    lambda: np.array(0.5, np.float16),
    lambda: True,
    lambda: 1e-300,
    lambda: 1e300,
)
ERRORS = (ValueError, TypeError, OSError, NotImplementedError)


class UntrueError(AssertionError):
    """A result that is not what it should be."""


def true(condition: Any, what: str) -> None:
    """Raise unless the condition holds."""
    if not condition:
        raise UntrueError(what)


def near(found: Any, expected: Any, what: str, rtol: float = 2e-3, atol: float = 1e-6) -> None:
    """Raise unless two arrays agree."""
    found, expected = np.asarray(found, dtype=float), np.asarray(expected, dtype=float)
    agree = found.shape == expected.shape and np.allclose(found, expected, rtol=rtol, atol=atol, equal_nan=True)
    true(agree, f"{what}: {found.ravel()[:4]} instead of {expected.ravel()[:4]}")


class Draw:
    """The random choices of one input, and which of its arguments got something that it should not."""

    def __init__(self, seed: str) -> None:
        self.random = random.Random(seed)
        self.arguments: dict[str, Any] = {}
        #: Whether all is as documented, so that an error would be a false one.
        self.good = True

    def one_of(self, *choices: Any) -> Any:
        return self.random.choice(choices)

    def decay(self, low: float = 0.0) -> float:
        """A decay, also close to both ends."""
        kind = self.random.randrange(6)
        far = 1 - 10.0 ** -self.random.uniform(1, 6)
        return (self.random.uniform(low, 1), far, self.random.uniform(0.5, 0.99), 0.9, 0.999, max(low, 1e-6))[kind]

    def positive(self, low: float = -6, high: float = 2) -> float:
        return 10.0 ** self.random.uniform(low, high)

    def numbers(self, count: int, scale: float = 2.0) -> np.ndarray:
        return np.array([self.random.uniform(-scale, scale) for _ in range(count)])

    def spoil(self, arguments: dict[str, Any], share: float = 0.6, among: tuple[str, ...] = ()) -> dict[str, Any]:
        """Put garbage in the place of an argument, in a share of all inputs."""
        if self.random.random() < share:
            name = self.random.choice(among or tuple(arguments))
            arguments = {**arguments, name: self.random.choice(GARBAGE)()}
            self.good = False
        self.arguments = arguments
        return arguments

    def scalar(self, name: str) -> float | None:
        """An argument as a float, where it is one real number."""
        value = self.arguments[name]
        if isinstance(value, str | bytes | bool | complex) or value is None or np.ndim(value) != 0:
            return None
        try:
            return float(value)
        except (TypeError, ValueError, OverflowError):
            return None


# --- constructors ----------------------------------------------------------------------------------------------------

CONSTRUCTORS: dict[str, tuple[Callable[..., Any], tuple[str, ...]]] = {
    "adam": (af.adam, ("beta", "gamma", "epsilon")),
    "adamw": (af.adamw, ("beta", "gamma", "epsilon", "weight_decay")),
    "rmsprop": (af.rmsprop, ("beta", "epsilon", "weight_decay")),
    "kadam": (af.kadam, ("k", "beta", "gamma", "epsilon", "weight_decay")),
    "sgd": (af.sgd, ("gamma", "weight_decay")),
    "signsgd": (af.signsgd, ("weight_decay",)),
    **{
        make.__name__: (make, ("beta", "gamma", "epsilon", "weight_decay"))
        for make in (
            af.uadam,
            af.nadam,
            af.adamax,
            af.amsgrad,
            af.adabelief,
            af.yogi,
            af.radam,
            af.adabound,
            af.nadambound,
            af.ademamix,
            af.muon,
            af.vradam,
        )
    },
    "adagrad": (af.adagrad, ("epsilon", "weight_decay")),
    "lars": (af.lars, ("gamma",)),
    "steepest_descent": (af.steepest_descent, ("weight_decay",)),
    "adafom": (af.adafom, ("gamma", "epsilon", "weight_decay")),
    "madam": (af.madam, ("gamma", "epsilon", "weight_decay")),
    "lamadam": (af.lamadam, ("gamma", "epsilon", "weight_decay")),
}
FLAGS = ("epsilon_inside_root", "bias_correction", "second_moment", "strategy", "norm")


def constructors(draw: Draw) -> str:
    """An optimizer has the numbers that it was given, and they are in range."""
    name = draw.one_of(*CONSTRUCTORS)
    make, numbers = CONSTRUCTORS[name]
    values = {
        "learning_rate": draw.positive(),
        "k": draw.random.randint(1, 5),
        "beta": draw.decay(low=1e-9),
        "gamma": draw.decay(),
        "epsilon": draw.one_of(0.0, 1e-8, draw.positive()),
        "weight_decay": draw.one_of(0.0, draw.positive(-5, 0)),
    }
    arguments = {key: values[key] for key in ("learning_rate", *numbers)}
    if name in ("adam", "adamw", "rmsprop", "kadam") and draw.random.random() < 0.5:
        flag = draw.one_of("epsilon_inside_root", "bias_correction")
        arguments[flag] = draw.one_of(True, False)
    if name == "kadam":
        arguments["strategy"] = draw.one_of("naive", "uniform", "exponential", "inverse_exponential")
    if name == "steepest_descent":
        arguments["norm"] = draw.one_of("max", "spectral")
    arguments = draw.spoil(arguments)
    optimizer = make(**arguments)
    low = {"learning_rate": 0.0, "k": 1, "beta": 0.0, "gamma": 0.0, "epsilon": 0.0, "weight_decay": 0.0}
    for key in arguments:
        if key in FLAGS:
            named = key in ("strategy", "second_moment", "norm")
            true(named or isinstance(arguments[key], bool), f"{key} was accepted")
            continue
        if np.ndim(arguments[key]) > 0:
            # Batches of optimizers: every number of them is checked below.
            continue
        number = draw.scalar(key)
        true(number is not None, f"{key}={arguments[key]!r} was accepted")
        high = 1.0 if key in ("beta", "gamma") else np.inf
        true(low[key] <= number < high and (number > 0 or key not in ("learning_rate", "beta")), f"{key}={number}")
        if key in ("learning_rate", "weight_decay"):
            near(getattr(optimizer, key), np.float32(number), key, atol=0)
    true(isinstance(optimizer, af.Optimizer), "no optimizer")
    return name


# --- runs ------------------------------------------------------------------------------------------------------------


def quadratic_loss(params: Any) -> Any:
    """½ Σ c θ² with c = 1, 3, 1, … for parameters of every structure; one program for all runs."""
    flat = ravel_pytree(params)[0]
    return 0.5 * jnp.sum((1 + 2 * (jnp.arange(flat.size) % 2)) * flat**2)


def reference(gamma: float, beta: float, arguments: dict[str, Any], params: np.ndarray) -> np.ndarray:
    """Adam in NumPy, in float64: θ at every iteration."""
    rate, decay, path = arguments["learning_rate"], arguments["weight_decay"], [params]
    m, v = np.zeros(2), np.zeros(2)
    for n in range(arguments["steps"]):
        gradient = np.array([1.0, 3.0]) * path[-1]
        m, v = gamma * m + (1 - gamma) * gradient, beta * v + (1 - beta) * gradient**2
        update = (m / (1 - gamma ** (n + 1))) / (np.sqrt(v / (1 - beta ** (n + 1))) + arguments["epsilon"])
        path.append(path[-1] - rate * (decay * path[-1] + update))
    return np.array(path)


def flow_runs(draw: Draw) -> str:
    """A flow stays close to the iterates at a small learning rate, or names what is wrong."""
    numbers = {"learning_rate": draw.positive(-4, -2), "epsilon": 1e-3, "weight_decay": draw.one_of(0.0, 0.1)}
    beta, gamma, params = draw.random.uniform(0.9, 0.999), draw.random.uniform(0.1, 0.9), draw.numbers(2)
    arguments: dict[str, Any] = {
        "flow": af.GouldTanakaFlow(af.adamw(beta=beta, gamma=gamma, **numbers)),
        "loss": quadratic_loss,
        "params": jnp.asarray(params),
        "steps": 8,
        "rtol": draw.one_of(1e-3, 1e-4),
        "save_at": [0, 4, 8],
        "atol": None,
        "step_size": None,
        "start": None,
        "observe": None,
        "has_aux": False,
        "max_steps": 1000,
    }
    arguments = draw.spoil(arguments, share=0.7, among=tuple(name for name in arguments if name != "loss"))
    run = af.solve(**arguments, on_failure="ignore")
    for leaf in jax.tree.leaves(run.params):
        true(np.isfinite(leaf).all(), f"{run.outcome.name}, but θ is {leaf}")
    if run.outcome.name == "completed" and draw.good:
        path = reference(gamma, beta, {**numbers, "steps": 8}, np.asarray(params))
        # At most every update, of size about η, is missed in full.
        near(run.params, path[[0, 4, 8]], "params", rtol=0.0, atol=8 * numbers["learning_rate"])
    return run.outcome.name


def runs(draw: Draw) -> str:
    """Four of five inputs run the optimizer, the others a flow."""
    return flow_runs(draw) if draw.random.random() < 0.2 else discrete_runs(draw)


def discrete_runs(draw: Draw) -> str:
    """A run agrees with a recursion in NumPy, or names what is wrong; lengths are few, so that programs are shared."""
    beta, gamma = draw.random.uniform(0.5, 0.999), draw.random.uniform(0.1, 0.95)
    numbers = {"learning_rate": draw.positive(-4, -1), "epsilon": 1e-3, "weight_decay": draw.one_of(0.0, 0.1)}
    params = draw.numbers(2)
    arguments: dict[str, Any] = {
        "optimizer": af.adamw(beta=beta, gamma=gamma, **numbers),
        "loss": quadratic_loss,
        "params": jnp.asarray(params),
        "steps": draw.one_of(3, 8),
        "save_at": draw.one_of(None, [0, 2], np.array([1, 3])),
    }
    arguments = draw.spoil(arguments, share=0.7)
    given = [arguments[name] for name in ("optimizer", "loss", "params", "steps")]
    run = af.iterate(*given, save_at=arguments["save_at"], on_failure="ignore")
    steps = arguments["steps"]
    is_vector = [jnp.shape(leaf) for leaf in jax.tree.leaves(arguments["params"])] == [(2,)]
    if not is_vector or arguments["loss"] is not quadratic_loss:
        finite = all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(run.params))
        true(finite, f"a run that is not finite, of {arguments['params']!r}")
        return run.outcome.name
    start = np.asarray(arguments["params"], dtype=float)
    path = reference(gamma, beta, {**numbers, "steps": int(steps)}, start)
    saved = range(int(steps) + 1) if arguments["save_at"] is None else np.atleast_1d(arguments["save_at"])
    true(run.outcome.name in ("completed", "diverged", "not_finite"), run.outcome.name)
    if run.outcome.name == "completed":
        near(run.iterations, saved, "iterations")
        near(run.params, path[np.asarray(saved, int)], "params")
    else:
        true(np.abs(path).max() > 1e6 or not np.isfinite(start**2).all(), f"{run.outcome.name}: {run.outcome.message}")
    return run.outcome.name


# --- recipes ---------------------------------------------------------------------------------------------------------


def two_leaves_loss(params: Any) -> Any:
    """Of the gradient (3 a, −b/2)."""
    return 1.5 * params["a"][0] ** 2 - 0.25 * params["b"][0] ** 2


def two_steps(optimizer: Any, arguments: dict[str, Any], rates: Any, decays: np.ndarray, clip: Any) -> None:
    """Two steps of Adam with β = .9, γ = .5 and ε = 1e-3 of two leaves agree with NumPy."""
    params = {"a": jnp.array([1.0]), "b": jnp.array([-2.0])}
    theta, m, v = np.array([1.0, -2.0]), np.zeros(2), np.zeros(2)
    state = optimizer.initial_state(params)
    for n in range(2):
        gradient = np.array([3.0, -0.5]) * theta
        params, state = optimizer.step(two_leaves_loss, (params, state), n)
        if clip is not None:
            gradient = gradient * min(1.0, clip / float(np.linalg.norm(gradient)))
        m, v = 0.5 * m + 0.5 * gradient, 0.9 * v + 0.1 * gradient**2
        update = m / (1 - 0.5 ** (n + 1)) / (np.sqrt(v / (1 - 0.9 ** (n + 1))) + 1e-3)
        theta = theta - rates(n) * (decays * theta + update)
    near(np.concatenate([params["a"], params["b"]]), theta, f"two steps with {arguments}", rtol=5e-3, atol=1e-5)


def settings(draw: Draw) -> str:
    """Schedules, groups and clipping are those of NumPy, or the error names the argument."""
    rate, decay, clip = draw.positive(-4, 0), draw.positive(-4, 0), draw.positive(-2, 1)
    shares = np.array([draw.positive(-1, 1), draw.positive(-1, 1)])
    arguments = {
        "learning_rate": draw.one_of(rate, lambda n: rate / (1.0 + n), {"a": rate, "b": rate}),
        "weight_decay": draw.one_of(0.0, decay, lambda n: decay + 0.0 * n, {"a": decay, "b": 0.0}),
        "clip_norm": draw.one_of(None, clip),
        "by_leaf": draw.one_of(None, {"a": float(shares[0]), "b": float(shares[1])}),
    }
    arguments = draw.spoil(arguments, share=0.5, among=("learning_rate", "weight_decay", "clip_norm"))
    given = arguments["learning_rate"]
    groups = arguments["by_leaf"] is not None and draw.good and not isinstance(given, dict)
    learning_rate = af.by_leaf(arguments["by_leaf"], times=given) if groups else given
    optimizer = af.adamw(learning_rate, beta=0.9, gamma=0.5, epsilon=1e-3, weight_decay=arguments["weight_decay"])
    if arguments["clip_norm"] is not None:
        optimizer = af.with_clipping(optimizer, arguments["clip_norm"])
    if not draw.good:
        # Garbage that is a number, or was not used, leaves an optimizer that makes steps.
        params = {"a": jnp.ones(1), "b": jnp.ones(1)}
        optimizer.step(two_leaves_loss, (params, optimizer.initial_state(params)), 0)
        return "settings with other numbers"
    decays = arguments["weight_decay"]
    by_leaf = np.array([decay, 0.0] if isinstance(decays, dict) else [decay if decays != 0.0 else 0.0] * 2)

    def rates(n: int) -> Any:
        return (given(n) if callable(given) else rate) * (shares if groups else np.ones(2))

    two_steps(optimizer, arguments, rates, by_leaf, arguments["clip_norm"])
    return "settings"


def files(draw: Draw) -> str:
    """What is saved is read back bit for bit and goes on; another path, start or `until` is named."""
    optimizer = af.adamw(draw.positive(-4, -1), epsilon=1e-3, weight_decay=0.1)
    run = af.iterate(optimizer, quadratic_loss, jnp.asarray(draw.numbers(2)), 3, on_failure="ignore")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run.nc"
        run.save(path)
        arguments = draw.spoil({"path": path, "until": None}, share=0.5)
        loaded = af.load(arguments["path"], until=arguments["until"])
    true(loaded == run, "another run was read")
    params, start = loaded.restart
    arguments = draw.spoil({"start": start, "steps": 8}, share=0.3)
    rest = af.iterate(
        optimizer, quadratic_loss, params, arguments["steps"], start=arguments["start"], on_failure="ignore"
    )
    true(all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(rest.params)), rest.outcome.name)
    return "files"


def recipes(draw: Draw) -> str:
    """Two of three inputs are settings, the others files."""
    return files(draw) if draw.random.random() < 1 / 3 else settings(draw)


# --- analysis --------------------------------------------------------------------------------------------------------


def bounds(draw: Draw) -> str:
    kind = draw.one_of("gould_tanaka", "discrete")
    beta, gamma = draw.decay(low=1e-6), draw.decay()
    arguments = {"beta": beta, "gamma": gamma, "iteration": draw.random.randint(0, 10**6), "kind": kind}
    arguments = draw.spoil(arguments, share=0.5)
    bound = np.asarray(af.analysis.update_bound(**arguments))
    logarithm = np.asarray(af.analysis.log_update_bound(**arguments))
    # At n = 0 the bound of the paper is 0, at γ = 0 or close to it the logarithm may be infinite.
    true(not np.isnan(bound).any() and (bound >= 0).all(), f"update_bound {bound}")
    true(not np.isnan(logarithm).any(), f"log_update_bound {logarithm}")
    with np.errstate(divide="ignore"):
        ordinary = np.isfinite(bound) & (bound > 1e-30)
        near(np.log(bound[ordinary]), logarithm[ordinary], "ln of the bound", rtol=1e-2, atol=1e-2)
    return "bounds"


def exponents(draw: Draw) -> str:
    arguments = draw.spoil({"beta": draw.decay(low=1e-6), "gamma": draw.decay(low=1e-6)}, share=0.5)
    found = af.analysis.stability_exponent(**arguments)
    true(not np.isnan(np.asarray(found)).any(), f"stability_exponent {found}")
    beta, gamma = (np.asarray(arguments[name], dtype=np.float64) for name in ("beta", "gamma"))
    if beta.shape == gamma.shape == ():
        # Rates of the paper: (1−γ)/(1−β) and the like depend on conventions; the sign is that of the region.
        sign = np.asarray(af.analysis.bounded_update_sign(beta=float(beta), gamma=float(gamma)))
        true(abs(float(found)) < 1e-5 or np.sign(float(found)) == sign, f"sign {sign} of exponent {found}")
    return "exponents"


def edges(draw: Draw) -> str:
    arguments = draw.spoil({"gamma": draw.decay()}, share=0.5)
    found = np.asarray(af.analysis.adaptive_edge(**arguments))
    gamma = np.asarray(arguments["gamma"], dtype=float)
    near(found, (2 + 2 * gamma) / (1 - gamma), "adaptive_edge", rtol=1e-2)
    return "edges"


def critical(draw: Draw) -> str:
    arguments = draw.spoil({"learning_rate": draw.positive(-3, 0), "gamma": draw.random.uniform(0, 0.99)}, share=0.5)
    optimizer = af.adam(arguments["learning_rate"], beta=0.999, gamma=arguments["gamma"], epsilon=1e-8)
    found = np.asarray(af.analysis.critical_curvature(optimizer))
    rate, gamma = (np.asarray(arguments[name], dtype=float) for name in ("learning_rate", "gamma"))
    near(found, np.broadcast_to((2 + 2 * gamma) / (1 - gamma) / rate, found.shape), "critical_curvature", rtol=1e-2)
    return "critical"


def norms(draw: Draw) -> str:
    arguments = draw.spoil(
        {
            "size": draw.random.randint(1, 10**6),
            "learning_rate": draw.positive(-5, 0),
            "weight_decay": draw.positive(-4, 0),
        },
        share=0.5,
    )
    found = np.asarray(af.analysis.equilibrium_norm(**arguments))
    true(not np.isnan(found).any() and (found >= 0).all(), f"equilibrium_norm {found}")
    # Of numbers near the ends of float32 it may overflow or be 0.
    true(not draw.good or (np.isfinite(found) & (found > 0)).all(), f"equilibrium_norm {found}")
    return "norms"


def curves(draw: Draw) -> str:
    curve = draw.one_of(af.analysis.level_curve, af.analysis.normal_curve)
    arguments = {"beta": draw.decay(low=1e-6), "gamma": draw.decay(low=1e-6), "points": draw.random.randint(2, 6)}
    arguments = draw.spoil(arguments, share=0.5)
    betas, gammas = (np.asarray(decays) for decays in curve(**arguments))
    true(len(betas) == len(gammas) == arguments["points"], "points")
    for decays in (betas, gammas):
        true(((decays >= 0) & (decays <= 1)).all(), f"decays {decays}")
    return "curves"


def region_maps(draw: Draw) -> str:
    arguments: dict[str, Any] = {
        "beta": np.sort([draw.random.uniform(0.5, 0.999) for _ in range(3)]),
        "gamma": np.sort([draw.random.uniform(0.1, 0.999) for _ in range(2)]),
        "iteration": draw.random.randint(1, 1000),
    }
    data = af.analysis.bounded_update_region(**draw.spoil(arguments, share=0.5))
    for name, variable in data.items():
        true(variable.dtype.kind != "f" or not np.isnan(variable.values).any(), f"NaN in {name}")
    return "region_maps"


ANALYSES = (bounds, exponents, edges, critical, norms, curves, region_maps)


def analysis(draw: Draw) -> str:
    """Closed forms, signs and ranges."""
    return draw.one_of(*ANALYSES)(draw)


# --- noise -----------------------------------------------------------------------------------------------------------


def noise(draw: Draw) -> str:
    """Covariances and rules."""
    return draw.one_of(noises, noises, rules)(draw)


def mean_product(params: Any, data: Any) -> Any:
    """A loss whose gradient of an example is the example; one program for all covariances."""
    return jnp.mean(data @ params)


def noises(draw: Draw) -> str:
    """A known covariance is applied and traced as it was given; a measured one has the factor of its batch size."""
    if draw.random.random() < 0.5:
        matrix = np.diag(np.abs(draw.numbers(2)) + 0.1)
        arguments = draw.spoil(
            {"covariance": draw.one_of(0.5, matrix, jnp.asarray([0.5, 2.0])), "params": jnp.zeros(2)}, share=0.6
        )
        found = af.noise.known_covariance(**arguments)
        given = np.asarray(arguments["covariance"], dtype=float)
        if jnp.shape(arguments["params"]) == (2,):
            expected = np.trace(given) if given.ndim == 2 else np.sum(np.broadcast_to(given, 2))
            near(found.trace, expected, "trace", rtol=1e-2)
        return "known_covariance"
    data = jnp.asarray(draw.numbers(12).reshape(6, 2))
    arguments = {
        "batch_size": draw.random.randint(1, 6),
        "kind": draw.one_of("isotropic", "diagonal", "low_rank", "full"),
        "replacement": draw.one_of(True, False),
        "rank": draw.random.randint(1, 3),
    }
    arguments = draw.spoil(arguments, share=0.6)
    found = af.noise.covariance(mean_product, jnp.ones(2), data, **arguments)
    size = int(arguments["batch_size"])
    share = 1.0 if arguments["replacement"] else (6 - size) / 5
    near(found.trace, np.var(np.asarray(data), axis=0).sum() * share / size, "trace", atol=1e-5)
    return "covariance"


def rules(draw: Draw) -> str:
    """Rules for batches give decays in (0, 1) and rates that scale, or name the factor."""
    arguments = draw.spoil({"factor": draw.positive(-1, 1)}, share=0.5)
    draw.good = False  # a factor above 1/(1 − γ) is refused
    found = af.scale_batch(af.adam(1e-3, gamma=0.9), **arguments)
    near(found.learning_rate, 1e-3 * np.sqrt(np.asarray(arguments["factor"], float)), "learning_rate", rtol=1e-2)
    gamma = np.asarray(found.stages[0].gamma)
    true((gamma >= 0).all() and (gamma < 1).all(), f"gamma {gamma}")
    return "scale_batch"


# --- problems --------------------------------------------------------------------------------------------------------


def quadratics(draw: Draw) -> str:
    c = draw.numbers(3)
    arguments = draw.spoil({"curvatures": c, "start": draw.numbers(3)}, share=0.7)
    problem = af.problems.quadratic(**arguments)
    curvatures = np.asarray(arguments["curvatures"], dtype=float)
    start = np.ones_like(curvatures) if arguments["start"] is None else np.asarray(arguments["start"], dtype=float)
    near(problem.params, start, "start")
    near(problem.loss(problem.params), 0.5 * np.sum(curvatures * start**2), "loss")
    return "quadratic"


def monomials(draw: Draw) -> str:
    arguments = draw.spoil({"power": draw.random.randint(1, 6), "start": draw.random.uniform(-2, 2)}, share=0.7)
    problem = af.problems.monomial(**arguments)
    x, k = float(arguments["start"]), arguments["power"]
    near(problem.params, x, "start")
    with np.errstate(over="ignore"):
        near(problem.loss(problem.params), np.float32(x) ** k / k, "loss")
    return "monomial"


def rayleighs(draw: Draw) -> str:
    arguments = {
        "dimension": draw.random.randint(2, 9),
        "spread": draw.positive(-2, 2),
        "seed": draw.random.randrange(99),
    }
    problem = af.problems.rayleigh(**draw.spoil(arguments, share=0.7))
    near(np.linalg.norm(problem.params), 1.0, "norm of the start")
    spread = float(draw.arguments["spread"])
    true(-1e-6 <= float(problem.loss(problem.params)) <= spread * (1 + 1e-5), "a quotient out of range")
    return "rayleigh"


def chains(draw: Draw) -> str:
    arguments = draw.spoil({"dimension": draw.random.randint(2, 40)}, share=0.7)
    problem = af.problems.chain(**arguments)
    near(problem.params, np.linspace(-0.7, 1.3, arguments["dimension"]), "start")
    return "chain"


def images_and_labels(draw: Draw) -> tuple[Any, Any]:
    """Images and labels, of which one may be of another type or shape."""
    generator = np.random.default_rng(draw.random.randrange(2**32))
    count, side = draw.one_of(2, 3), draw.one_of(2, 4, 5)
    images, labels = generator.random((count, side, side, 1)), np.arange(count)
    spoiled = draw.one_of(
        None, None, "column", "float", "negative", "one-hot", "few", "nan", "bytes", "colours", "complex", "f2", "big",
        "list", "garbage images", "garbage labels", "empty",
    )  # fmt: skip
    images = {
        "nan": images * np.nan, "bytes": (255 * images).astype(np.uint8), "colours": images[..., 0],
        "complex": images + 0j, "f2": images.astype(np.float16), "big": images.astype(">f8"), "list": images.tolist(),
        "empty": images[:0],
    }.get(spoiled, images)  # fmt: skip
    labels = {
        "column": labels[:, None], "float": labels * 1.0, "negative": labels - 1, "one-hot": np.eye(count)[labels],
        "few": labels[:-1], "big": labels.astype(">i2"), "list": labels.tolist(), "empty": labels[:0],
    }.get(spoiled, labels)  # fmt: skip
    images = draw.random.choice(GARBAGE)() if spoiled == "garbage images" else images
    labels = draw.random.choice(GARBAGE)() if spoiled == "garbage labels" else labels
    draw.arguments = {"data": spoiled}
    draw.good = spoiled in (None, "f2", "big", "list")
    return images, labels


def networks(draw: Draw) -> str:
    part = images_and_labels(draw)
    problem = af.problems.cnn((2,), data=(part, part), seed=draw.random.randrange(9))
    true(draw.good, "data were accepted")
    images, labels = problem.loss.examples
    true(labels.dtype == jnp.int32 and images.dtype in (jnp.float32, jnp.float64), f"{labels.dtype}, {images.dtype}")
    near(images, part[0], "images", rtol=1e-3)
    near(labels, part[1], "labels")
    classes = problem.params[-1]["bias"].size
    true(classes == np.max(part[1]) + 1, f"{classes} classes")
    return "cnn"


def cross_entropies(draw: Draw) -> str:
    classes, count = draw.random.randint(1, 4), draw.random.randint(1, 3)
    logits = np.float32(draw.numbers(classes * count, 20.0).reshape(count, classes))
    labels = np.array([draw.random.randint(-1, classes) for _ in range(count)])
    arguments = draw.spoil({"logits": logits, "labels": labels}, share=0.5)
    draw.good = draw.good and bool((labels >= 0).all() and (labels < classes).all())
    found = af.problems.classification.mean_cross_entropy(**arguments)
    true(draw.good, "arguments were accepted")
    exact = np.log(np.exp(np.float64(logits)).sum(-1)) - np.float64(logits)[np.arange(count), labels]
    near(found, exact.mean(), "cross-entropy", rtol=1e-4, atol=1e-4)
    return "cross_entropy"


def texts(draw: Draw) -> str:
    from adamflow.problems.text import read_text

    content = draw.one_of("héllo", "a\nb", "\ufeffmark", "", "日本語", "e\u0301")
    encoding = draw.one_of("utf-8", "utf-8", "utf-16", "utf-16-le", "utf-8-sig")
    draw.arguments = {"text": (content, encoding)}
    with tempfile.TemporaryDirectory() as folder:
        path: Any = Path(folder, "text.txt")
        if encoding == "utf-8-sig":
            content = content.removeprefix("\ufeff")
        path.write_bytes(content.encode(encoding))
        draw.good = encoding.startswith("utf-8")
        if draw.random.random() < 0.4:
            draw.good = False
            path = draw.one_of("", None, 3, b"x", folder, Path(folder, "none"), "a\0b", object())
        found = read_text(path)
    if path is not None:
        expected = content.removeprefix("\ufeff")
        true(encoding.startswith("utf-8") or not content, f"{encoding} was accepted as {found!r}")
        true(found == expected, f"{found!r} instead of {expected!r}")
    return "text"


def builders(draw: Draw) -> str:
    """Networks and their batches: arguments of few values, since each builds a network."""
    make = draw.one_of(af.problems.mlp, af.problems.logistic, af.problems.cnn)
    arguments: dict[str, Any] = {
        "test_fraction": draw.random.uniform(0.01, 0.99),
        "data_seed": draw.random.randrange(99),
    }
    if make is af.problems.mlp:
        arguments |= {"widths": (draw.random.randint(3, 5),), "activation": "tanh", "seed": 1, "normalization": None}
    if make is af.problems.cnn:
        arguments |= {"channels": (2,), "kernel": 3, "train_size": draw.random.randint(1, 9), "normalization": "layer"}
    problem = make(**draw.spoil(arguments, share=0.8))
    for leaf in jax.tree.leaves(problem.params):
        true(np.isfinite(leaf).all(), "initial parameters that are not finite")
    return make.__name__


PROBLEMS = (quadratics, monomials, rayleighs, chains, networks, cross_entropies, texts, builders)


def problems(draw: Draw) -> str:
    """Losses against closed forms, and data as they were passed."""
    return draw.one_of(*PROBLEMS)(draw)


# --- plots -----------------------------------------------------------------------------------------------------------


def table_of(draw: Draw, *shape: int) -> np.ndarray:
    """Numbers of many kinds: positive, mixed, constant, zero, huge, with NaN and infinities."""
    size = int(np.prod(shape))
    kind = draw.one_of("positive", "mixed", "mixed", "ones", "zeros", "huge", "some nan", "all nan", "some inf")
    values = {
        "positive": np.abs(draw.numbers(size)) + 0.1,
        "ones": np.ones(size),
        "zeros": np.zeros(size),
        "huge": draw.numbers(size) * 1e30,
        "all nan": np.full(size, np.nan),
    }.get(kind, draw.numbers(size))
    if kind.startswith("some") and size:
        values[draw.random.randrange(size)] = np.nan if kind == "some nan" else draw.one_of(np.inf, -np.inf)
    return values.reshape(shape)


def plots(draw: Draw) -> str:
    """A picture is drawn and rendered without a warning, or the error names the argument."""
    p = af.plotting
    count, other = draw.one_of(0, 1, 2, 3, 5), draw.one_of(0, 1, 2, 3)
    n = np.arange(float(count))
    decays, few = (np.linspace(0.5, 0.99, length) for length in (count, other))
    borders = np.linspace(0.1, 0.9, count + 1)

    def t(*shape: int) -> np.ndarray:
        return table_of(draw, *shape)

    pictures: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
        "sharpness": (
            p.edge.sharpness_of_run,
            {"iterations": n, "values": t(count), "edge": draw.one_of(38.0, {"a": 2.0}, -1.0)},
        ),
        "sharpness_of_runs": (
            p.edge.sharpness_of_runs,
            {"iterations": n, "sharpness": t(other, count), "edges": np.abs(t(other))},
        ),
        "sharpness_over_edge": (p.edge.sharpness_over_edge, {"iterations": n, "ratios": t(other, count)}),
        "losses": (p.edge.losses, {"iterations": n, "loss": t(other, count)}),
        "hovering": (p.edge.hovering, {"ratios": t(other, 2, count), "labels": ["a"] * other}),
        "distances": (
            p.two_branch_flow.distances,
            {"iterations": n, "errors": t(1, other, count), "flows": ["f"] * other, "labels": ["c"]},
        ),
        "against": (p.generalization.against, {"x": n, "table": t(count, other), "label": "a"}),
        "updates_and_bounds": (
            p.kadam.updates_and_bounds,
            {"iterations": n, "updates": t(other, count), "bounds": t(other, count), "labels": ["a"] * other},
        ),
        "by_stages": (p.kadam.by_stages, {"stages": n, "rows": {"a": t(count)}}),
        "map_of_updates": (
            p.observed_region.map_of_updates,
            {
                "beta_edges": borders,
                "gamma_edges": borders,
                "largest": t(count, count),
                "thresholds": [2.0, 5.0],
                "top": 20.0,
            },
        ),
        "regions": (
            p.phase.regions,
            {"betas": decays, "gammas": few, "exponent": t(count, other), "levels": [-1, 1], "dashed": t(count, other)},
        ),
        "growth": (p.phase.growth, {"betas": decays, "gammas": few, "rates": t(count, other), "largest": 1.0}),
        "border": (p.phase.border, {"betas": decays, "gammas": few, "difference": t(count, other)}),
        "largest_updates": (
            p.region.largest_updates,
            {
                "beta_edges": borders,
                "gamma_edges": borders,
                "largest": t(count, count),
                "diverged": np.ones((count, count), bool),
            },
        ),
        "histories": (
            p.region.histories,
            {"iterations": n, "log_updates": t(other, count), "log_bounds": t(other, count), "labels": ["a"] * other},
        ),
        "triangle": (p.scale_invariance.triangle, {"iterations": n, "cosines": t(count, count)}),
        "lines": (p.scale_invariance.lines, {"positions": n, "values": {"a": t(other, count)}}),
    }
    name = draw.one_of(*pictures)
    make, arguments = pictures[name]
    arguments = draw.spoil(arguments, share=0.3)
    # Empty data, or none that is finite, are refused.
    draw.good = False
    figure, ax = plt.subplots()
    try:
        make(ax=ax, **arguments)
        true(ax.has_data() or name == "border", "nothing was drawn")
        figure.draw_without_rendering()
    finally:
        plt.close(figure)
    return name


# --- sweeps ----------------------------------------------------------------------------------------------------------


def zipped_points(draw: Draw) -> str:
    """Points that belong together keep their values, in a sweep too."""
    length = draw.one_of(1, 2, 3, 5)
    given = {"beta": draw.numbers(length), "gamma": draw.numbers(draw.one_of(length, length, length + 1))}
    draw.good = len(given["beta"]) == len(given["gamma"])
    given = draw.spoil(given)
    points = af.zip_axes(**given)
    runs = af.sweep(
        lambda beta, gamma: {"sum": 1.0 * beta + gamma}, {"point": points}, method="threads", progress=False
    )
    near(runs["sum"], np.asarray(given["beta"], float) + np.asarray(given["gamma"], float), "a sum", rtol=1e-12)
    return "zip_axes"


def sweeps(draw: Draw) -> str:
    """A sweep is NumPy's product, whatever the method and the chunk."""
    if draw.random.random() < 0.3:
        return zipped_points(draw)
    x, k = np.sort(draw.numbers(draw.one_of(1, 2, 5))), draw.one_of([1], [3, 1], [2.5, 0.0])
    arguments = {
        "x": x,
        "k": k,
        "method": draw.one_of("auto", "vmap", "threads"),
        "chunk": draw.one_of("auto", 1, 3, 100),
        "memory": draw.one_of(None, "2 MB", 1e8),
        "difficulty": draw.one_of(None, lambda x, k: -x),
        "retries": draw.one_of(0, 2),
        "progress": False,
    }
    arguments = draw.spoil(arguments)
    grid = {name: arguments[name] for name in ("x", "k")}
    options = {name: value for name, value in arguments.items() if name not in grid}
    runs = af.sweep(lambda x, k: {"product": x * k, "row": ("place", x + np.arange(3.0))}, grid, **options)
    x, k = (np.asarray(grid[name]) for name in ("x", "k"))
    near(runs["product"], np.multiply.outer(x.astype(float), k.astype(float)), "a product")
    true(runs.row.dims == ("x", "k", "place"), f"dims {runs.row.dims}")
    true(bool((runs.outcome == 0).all()), "not every lane has completed")
    return str(arguments["method"])


# --- the driver ------------------------------------------------------------------------------------------------------

PARTS: dict[str, Callable[[Draw], str]] = {
    "constructors": constructors,
    "runs": runs,
    "recipes": recipes,
    "analysis": analysis,
    "noise": noise,
    "problems": problems,
    "plots": plots,
    "sweeps": sweeps,
}
#: How many inputs each part gets by default: 2,800 in all.
COUNTS = {
    "constructors": 800,
    "runs": 300,
    "recipes": 200,
    "analysis": 500,
    "noise": 100,
    "sweeps": 100,
    "problems": 500,
    "plots": 300,
}


def names_an_argument(error: Exception, draw: Draw) -> bool:
    """Whether the message has the name of an argument of the call in it, or of a part of one."""
    words = set(re.findall(r"\w+", str(error)))
    related = {"start": {"curvatures"}, "data": {"images", "labels"}, "optimizer": {"learning_rate"}}
    return any(name in words or related.get(name, set()) & words for name in draw.arguments)


def judge(part: str, seed: int, index: int) -> tuple[str, str]:
    """The outcome of one input, and what was wrong with it, or nothing."""
    draw = Draw(f"{seed}-{part}-{index}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            warnings.filterwarnings("ignore", message=r"data\[\d\]\[0\] has", category=UserWarning)
            result = PARTS[part](draw)
    except UntrueError as error:
        return "untrue", str(error)
    except ERRORS as error:
        if draw.good:
            return "good input refused", f"{type(error).__name__}: {error}"
        if names_an_argument(error, draw):
            return "named error", ""
        return "error without a name", f"{type(error).__name__}: {error}"
    except Exception as error:
        return "other error", f"{type(error).__name__}: {error}"
    return f"true: {result}", ""


def shown(draw_arguments: dict[str, Any]) -> str:
    return ", ".join(f"{name}={value!r}"[:60] for name, value in draw_arguments.items())


def main() -> int:
    """Run the parts, print counts by outcome and every violation, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=tuple(PARTS), default=list(PARTS))
    parser.add_argument("--count", type=int, help=f"inputs of each part (default: {COUNTS})")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="the number of one input, which runs alone and raises what it raises")
    parser.add_argument("--seconds", type=float, default=600, help="no input is begun later (default: 600)")
    flags = parser.parse_args()
    if flags.only is not None:
        for part in flags.parts:
            print(PARTS[part](Draw(f"{flags.seed}-{part}-{flags.only}")))
        return 0
    started, violations, total = time.monotonic(), 0, 0
    for part in flags.parts:
        counts: collections.Counter[str] = collections.Counter()
        since = time.monotonic()
        for index in range(flags.count or COUNTS[part]):
            if time.monotonic() - started > flags.seconds:
                print(f"{part}: out of time before input {index}")
                break
            outcome, wrong = judge(part, flags.seed, index)
            counts[outcome.split(":")[0]] += 1
            if wrong:
                violations += 1
                print(f"  --parts {part} --seed {flags.seed} --only {index}: {outcome}: {wrong[:300]!r}", flush=True)
        total += sum(counts.values())
        listed = ", ".join(f"{count} {outcome}" for outcome, count in counts.most_common())
        print(f"{part}, seed {flags.seed}: {listed}; {time.monotonic() - since:.0f} s", flush=True)
    print(f"{total} inputs, {violations} violations, {time.monotonic() - started:.0f} s, adamflow of {af.__file__}")
    return int(violations > 0)


if __name__ == "__main__":
    sys.exit(main())
