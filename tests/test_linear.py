"""Linear stability: against the equations written by hand, closed edges, NumPy's eigenvalues, and real runs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

import adamflow as af
from adamflow.analysis.stability.eigenvalues import MEASURES, dominant_of
from adamflow.optimizers import AdaBeliefStage, AdaFomStage, AdanStage, AMSGradStage

ETA, GAMMA, DECAY = 0.01, 0.9, 7.0
ADAMW = af.adamw(ETA, gamma=GAMMA, weight_decay=DECAY)
MODELS = {
    "discrete": "discrete",
    "order 1": af.GouldTanakaFlow(ADAMW),
    "order 2": af.GouldTanakaFlow(ADAMW, order=2),
    "order 2, exact": af.GouldTanakaFlow(ADAMW, order=2, rate="exact"),
}
gammas = st.floats(0.01, 0.99)


def rate_of(model, gamma):
    return (1 - gamma) / gamma if model.rate == "gould_tanaka" else -np.log(gamma)


def by_hand(model, gamma, s, decay):
    """The system of EQUATIONS.md's section 5 for AdamW, in another order of coordinates than the package's."""
    if model == "discrete":
        return np.array([[gamma, (1 - gamma) * s], [-ETA * gamma, 1 - ETA * decay - ETA * (1 - gamma) * s]])
    a = rate_of(model, gamma)
    if model.order == 1:
        return np.array([[-a, a * s], [-ETA, -ETA * decay]])
    return np.array([[-a, a * s, 0], [0, 0, 1], [-2 * ETA, -2 * ETA * decay, -2]])


def largest(matrix, model):
    values = np.linalg.eigvals(matrix)
    return np.abs(values).max(-1) if model == "discrete" else values.real.max(-1)


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS.keys())
def test_formula_adamw_is_the_block_of_the_equations(model):
    rng = np.random.default_rng(0)
    gamma, s, decay = rng.uniform(0.01, 0.99, 200), rng.uniform(-100, 5000, 200), rng.uniform(0, 250, 200)
    records = jax.vmap(lambda g, w: af.adamw(ETA, gamma=g, weight_decay=w))(jnp.asarray(gamma), jnp.asarray(decay))
    measured = af.analysis.linear_stability(records, s, model=model)
    matrices = [by_hand(model, *numbers) for numbers in zip(gamma, s, decay, strict=True)]
    np.testing.assert_allclose(measured, largest(np.stack(matrices), model), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("epsilon_inside_root", [False, True])
def test_identity_beta_epsilon_and_bias_correction_change_nothing(epsilon_inside_root):
    # s is an eigenvalue of P^{−1/2} H P^{−1/2}, and P has ε in it.
    other = af.adamw(
        ETA,
        beta=0.6,
        gamma=GAMMA,
        epsilon=0.3,
        weight_decay=DECAY,
        epsilon_inside_root=epsilon_inside_root,
        bias_correction=epsilon_inside_root,
    )
    for model in MODELS.values():
        systems = [af.analysis.linear_system(record, 300.0, model=model) for record in (ADAMW, other)]
        np.testing.assert_allclose(*systems, rtol=1e-14)


@pytest.mark.parametrize(("k", "name"), [(2, "discrete"), (2, "order 1"), (3, "discrete"), (3, "order 2")])
def test_formula_kadam_has_the_characteristic_polynomial_of_its_filters(k, name):
    record, s = af.kadam(k, ETA, gamma=GAMMA, weight_decay=DECAY), 30.0
    decays = [float(stage.gamma) for stage in record.stages]
    if name == "discrete":
        chain, drive = np.poly([1 - ETA * DECAY, *decays]), np.prod([1 - g for g in decays])
        polynomial = np.polyadd(chain, ETA * s * drive * np.eye(k + 1)[0])
    else:
        rates = [(1 - g) / g for g in decays]
        motion = [1, ETA * DECAY] if name == "order 1" else [0.5, 1, ETA * DECAY]
        polynomial = np.polyadd(np.polymul(motion, np.poly([-a for a in rates])), [ETA * s * np.prod(rates)])
    roots = np.roots(polynomial)
    expected = np.abs(roots).max() if name == "discrete" else roots.real.max()
    measured = af.analysis.linear_stability(record, s, model=MODELS[name])
    assert float(measured) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("gamma", [0.0, 0.3, 0.9, 0.99])
@pytest.mark.parametrize("decay", [0.0, 30.0])
def test_formula_edges_in_closed_form(gamma, decay):
    record = af.adamw(ETA, gamma=gamma, weight_decay=decay)
    expected = {"discrete": (2 - ETA * decay) * (1 + gamma) / (1 - gamma), "order 1": np.inf}
    for name in ("order 2", "order 2, exact"):
        a = rate_of(MODELS[name], gamma) if gamma else np.inf
        expected[name] = 2 + a + 2 * ETA * decay / a
    if gamma == 0:
        # RMSprop's flow of order 2, θ'' + 2θ' + 2η(λ + s)θ = 0, is stable for all s > 0.
        expected |= {"order 2": np.inf, "order 2, exact": np.inf}
    for name, model in MODELS.items():
        edge = ETA * float(af.analysis.critical_curvature(record, model=model))
        assert edge == pytest.approx(expected[name], rel=1e-12)
    if decay == 0:
        adaptive = float(af.analysis.adaptive_edge(gamma))
        assert ETA * float(af.analysis.critical_curvature(record)) == pytest.approx(adaptive, rel=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("k", "strategy"), [(2, "naive"), pytest.param(3, "inverse_exponential", marks=pytest.mark.slow)]
)
def test_identity_edge_is_where_stability_changes(k, strategy):
    record = af.kadam(k, ETA, gamma=GAMMA, strategy=strategy)
    for model, neutral in (("discrete", 1.0), (MODELS["order 1"], 0.0), (MODELS["order 2"], 0.0)):
        edge = float(af.analysis.critical_curvature(record, model=model))
        around = edge * jnp.array([1e-3, 0.1, 0.9, 1 - 1e-9, 1 + 1e-9])
        excess = np.asarray(af.analysis.linear_stability(record, around, model=model)) - neutral
        assert np.all(excess[:-1] < 0)
        assert excess[-1] > 0


@pytest.mark.slow
def test_formula_edges_of_map_flows_are_those_of_the_truncated_logarithm():
    # Order p maps a multiplier z of the step to the rate Σ_k (−1)^{k+1} (z − 1)^k / k.
    record = af.adam(1.0, gamma=0.9)
    assert np.isinf(af.analysis.critical_curvature(record, model=af.InterpolatingFlow(record, 3)))
    edge = float(af.analysis.critical_curvature(record, model=af.InterpolatingFlow(record, 4)))
    for factor, stable in ((0.999, True), (1.001, False)):
        change = np.linalg.eigvals(np.array([[1 - 0.1 * factor * edge, -0.9], [0.1 * factor * edge, 0.9]])) - 1
        rates = sum((-1) ** (k + 1) * change**k / k for k in range(1, 5))
        assert (rates.real.max() < 0) == stable


def test_identity_no_curvature_is_stable_beyond_a_weight_decay_of_two():
    edges = [af.analysis.critical_curvature(af.adamw(1.0, weight_decay=decay)) for decay in (1.9, 2.0, 2.5)]
    assert edges[0] == pytest.approx(1.9, rel=1e-9)
    assert edges[1] == edges[2] == 0


@pytest.mark.slow
@given(gammas, st.floats(-50, -1e-3))
def test_identity_negative_curvature_is_left_by_all(gamma, s):
    # θ is left at the rate of gradient flow, s, while that is slow; more weight decay than |s| holds it.
    for model, neutral in (("discrete", 1.0), (MODELS["order 1"], 0.0), (MODELS["order 2"], 0.0)):
        records = [af.adamw(1e-6, gamma=gamma, weight_decay=decay) for decay in (0.0, -2 * s)]
        leaves, stays = (float(af.analysis.linear_stability(r, s, model=model)) - neutral for r in records)
        assert leaves == pytest.approx(-1e-6 * s, rel=1e-2)
        assert stays == pytest.approx(1e-6 * s, rel=1e-2)


@pytest.mark.parametrize(
    ("stage", "edge"),
    [
        (AMSGradStage(0.999, GAMMA), 38.0),
        (AdaBeliefStage(0.999, GAMMA), 38.0),
        (AdaFomStage(GAMMA), 38.0),
    ],
)
def test_formula_records_with_other_second_moments_have_adams_edge(stage, edge):
    record = af.Optimizer(ETA, (stage,))
    assert ETA * float(af.analysis.critical_curvature(record)) == pytest.approx(edge, rel=1e-9)


def test_formula_adan_reads_differences_of_gradients():
    # m + (1−b2)·d, m and d the averages of g and of its difference: the response to z of period 2.
    b1, b2 = 0.9, 0.8
    record = af.Optimizer(ETA, (AdanStage(0.99, b1, b2, 1 - b2),))
    assert af.analysis.linear_system(record, 1.0).shape == (4, 4)
    edge = float(af.analysis.critical_curvature(record))
    at_edge, beyond = af.analysis.linear_stability(record, jnp.array([edge, 1.01 * edge]))
    assert at_edge == pytest.approx(1, abs=1e-9)
    assert beyond > 1


@pytest.mark.parametrize("rows", [1, 2, 3, 4])
@pytest.mark.parametrize("measure", MEASURES)
def test_formula_dominant_eigenvalue_of_random_matrices(rows, measure):
    rng = np.random.default_rng(0)
    plain = rng.normal(size=(4000, rows, rows))
    # Of all sizes, clustered around 1, and with one row far larger than the others.
    every = {1: plain, 1e-100: 1e-100 * plain, 1e90: 1e90 * plain, 1e-6: np.eye(rows) + 1e-6 * plain}
    every[1e3] = plain * np.array([1e3, *(1.0,) * (rows - 1)])[:, None]
    for scale, matrices in every.items():
        values = np.linalg.eigvals(matrices)
        expected = np.abs(values).max(-1) if measure == "modulus" else values.real.max(-1)
        found = np.asarray(dominant_of(jnp.asarray(matrices), measure))
        measured = np.abs(found) if measure == "modulus" else found.real
        np.testing.assert_allclose(measured / scale, expected / scale, atol=1e-10 if scale != 1e-6 else 1e-7)
        assert np.all(found.imag >= 0)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
@pytest.mark.parametrize(("k", "strategy"), [(1, "naive"), (2, "inverse_exponential")])
def test_formula_decays_near_one_keep_their_digits(k, strategy, dtype):
    gamma = jnp.array([0.0, 0.5, 0.9, 0.99, 0.999, 0.9999, 0.99999])
    records = jax.vmap(lambda g: af.kadam(k, 1.0, gamma=g, strategy=strategy))(gamma)
    records = jax.tree.map(lambda leaf: leaf.astype(dtype), records)
    rounding = float(jnp.finfo(dtype).eps)
    s = np.geomspace(1e-8, 1.0, 60)[:, None]
    matrices = np.asarray(af.analysis.linear_system(records, s))
    assert matrices.dtype == dtype
    expected = np.abs(np.linalg.eigvals(matrices.astype(float))).max(-1)
    radius = np.asarray(af.analysis.linear_stability(records, s))
    np.testing.assert_allclose(radius, expected, atol=20 * rounding)
    # The edge of these records: γ after its own rounding, since 1 − γ has few digits in float32.
    decays = [np.asarray(getattr(stage, "gamma", 0.0), float) for stage in records.stages]
    edge = np.asarray(af.analysis.critical_curvature(records), float)
    if k == 1:
        np.testing.assert_allclose(edge, 2 * (1 + decays[0]) / (1 - decays[0]), rtol=100 * rounding)
    exact = jax.tree.map(lambda leaf: leaf.astype(float), records)
    at_edge = np.asarray(af.analysis.linear_stability(exact, edge))
    slope = np.asarray(af.analysis.linear_stability(exact, 1.001 * edge)) - at_edge
    assert np.all(slope > 0)
    assert np.all(np.abs(at_edge - 1) <= np.maximum(2 * slope, 1e-15))


@given(
    arrays.arrays(float, (3,), elements=st.one_of(st.floats(-2, 2), st.sampled_from([0.0, 1.0, 1.0, -1.0, 1e-9, 1e6])))
)
def test_formula_dominant_of_repeated_and_extreme_roots(roots):
    # The companion matrix of known real roots; a root of multiplicity m is found to the m-th root of rounding.
    coefficients = np.poly(roots)
    companion = np.eye(3, k=-1)
    companion[0] = -coefficients[1:]
    size = np.abs(roots).max()
    for measure, expected in (("modulus", size), ("real part", roots.max())):
        found = complex(dominant_of(jnp.asarray(companion), measure))
        measured = abs(found) if measure == "modulus" else found.real
        assert measured == pytest.approx(expected, abs=2e-5 * max(size, 1e-12))


def test_identity_grid_is_the_same_point_by_point_under_jit_and_vmap():
    gamma, s = np.linspace(0.0, 0.99, 5), np.linspace(0.0, 4000.0, 7)
    model = MODELS["discrete"]
    diagram = af.analysis.phase_diagram(af.adamw, {"learning_rate": ETA, "gamma": gamma, "weight_decay": DECAY}, s)
    assert dict(diagram.growth.sizes) == {"gamma": 5, "curvature": 7}
    assert diagram.attrs["weight_decay"] == DECAY

    def growth(g, s):
        return jnp.log(af.analysis.linear_stability(af.adamw(ETA, gamma=g, weight_decay=DECAY), s, model=model))

    mapped = jax.jit(jax.vmap(jax.vmap(growth, (None, 0)), (0, None)))(jnp.asarray(gamma), jnp.asarray(s))
    np.testing.assert_allclose(diagram.growth, mapped, atol=1e-12)
    for i, g in enumerate(gamma):
        edge = af.analysis.critical_curvature(af.adamw(ETA, gamma=float(g), weight_decay=DECAY))
        assert float(diagram.critical_curvature[i]) == pytest.approx(float(edge), rel=1e-12)
    assert diagram.growth.attrs["units"] == "1/iteration"


def test_formula_grid_over_decays_and_weight_decay():
    numbers = {"learning_rate": 1.0, "beta": [0.9, 0.99], "gamma": [0.1, 0.5, 0.9], "weight_decay": [0.0, 1.0]}
    diagram = af.analysis.phase_diagram(af.adamw, {k: np.asarray(v) for k, v in numbers.items()}, 3.0)
    assert dict(diagram.growth.sizes) == {"beta": 2, "gamma": 3, "weight_decay": 2}
    expected = (2 - diagram.weight_decay) * (1 + diagram.gamma) / (1 - diagram.gamma)
    np.testing.assert_allclose(diagram.critical_curvature, expected.broadcast_like(diagram.critical_curvature))
    flow = af.GouldTanakaFlow(af.kadam(2, 1.0))
    constructor = functools.partial(af.kadam, 2)
    assert af.analysis.phase_diagram(constructor, {"learning_rate": 1.0}, 3.0, model=flow).growth.shape == ()


def test_identity_derivative_of_the_abscissa_is_that_of_the_closed_form():
    # RMSprop's radius is 1 − η(λ + s).
    derivative = jax.grad(lambda s: af.analysis.linear_stability(af.rmsprop(ETA, weight_decay=DECAY), s))(20.0)
    assert float(derivative) == pytest.approx(-ETA, rel=1e-9)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("factor", [0.9, 1.1])
def test_identity_a_run_of_adam_grows_by_the_radius_past_the_edge_and_not_before(gamma, factor):
    # v is held by ε, which is much larger than any gradient: then P = ε, and s the curvature over ε.
    epsilon = 1e6
    s = factor * af.analysis.adaptive_edge(gamma) / ETA
    record = af.adam(ETA, gamma=gamma, epsilon=epsilon, bias_correction=False)
    problem = af.problems.quadratic([float(s * epsilon)], start=[1e-40])
    run = af.iterate(record, problem.loss, problem.params, 100, save_at=np.arange(50, 101))
    logs = np.log(np.abs(run.params[:, 0]))
    expected = float(jnp.log(af.analysis.linear_stability(record, s)))
    if factor > 1:
        np.testing.assert_allclose(np.diff(logs), expected, rtol=1e-6)
        assert af.analysis.dominant_eigenvalue(record, s).real < -1
    else:
        # A complex pair: the envelope falls, single iterations need not.
        assert logs[-1] < logs[0] + 0.5 * 50 * expected


def test_failure_sign_descent_is_not_linear():
    for model in ("discrete", MODELS["order 1"]):
        with pytest.raises(TypeError, match="direction of 'signsgd' is not linear in the gradients"):
            af.analysis.linear_stability(af.signsgd(ETA), 1.0, model=model)


@pytest.mark.slow
def test_identity_curvature_of_any_size_and_derivative_of_the_edge():
    single = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), af.adam(1e-3, gamma=GAMMA))
    s = np.array([3e19, -3e19], np.float32)
    np.testing.assert_allclose(af.analysis.linear_stability(single, s), 1e-4 * np.abs(s), rtol=1e-5)
    derivative = jax.grad(lambda gamma: af.analysis.critical_curvature(af.adam(1.0, gamma=gamma)))(GAMMA)
    assert float(derivative) == pytest.approx(4 / (1 - GAMMA) ** 2, rel=1e-9)


@pytest.mark.usefixtures("unchecked")
def test_failure_bad_arguments_say_what_to_do():
    with pytest.raises(TypeError, match=r"linear stability needs an optimizer, such as .* got 'adam', a str"):
        af.analysis.linear_stability("adam", 1.0)
    with pytest.raises(ValueError, match="got 'curvature' among them"):
        af.analysis.phase_diagram(af.adam, {"learning_rate": 1.0, "curvature": 1.0}, 1.0)
    with pytest.raises(ValueError, match=r"curvature must lie in .* got nan"):
        af.analysis.linear_stability(ADAMW, np.nan)
    with pytest.raises(ValueError, match="model must be 'discrete' or a flow such as"):
        af.analysis.linear_stability(ADAMW, 1.0, model="continuous")
    with pytest.raises(ValueError, match="gamma must be a number or an increasing one-dimensional array"):
        af.analysis.phase_diagram(af.adam, {"learning_rate": 1.0, "gamma": np.ones((2, 2))}, 1.0)
    with pytest.raises(ValueError, match=r"gamma must lie in \[0, 1\), got 1.5"):
        af.analysis.phase_diagram(af.adam, {"learning_rate": 1.0, "gamma": np.array([0.5, 1.5])}, 1.0)
    with pytest.raises(ValueError, match="named axes, which jit and vmap do not know"):
        jax.jit(lambda s: af.analysis.phase_diagram(af.adam, {"learning_rate": 1.0}, s).growth.values)(1.0)
    with pytest.raises(ValueError, match="measure must be one of"):
        dominant_of(jnp.eye(2), "largest")
    with pytest.raises(ValueError, match="square with at least one row"):
        dominant_of(jnp.ones((2, 3)), "modulus")
