"""Leading eigenvalues of steps and flows: against blocks in closed form, dense matrices, and products of their own."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import adamflow as af
from adamflow.analysis import Spectrum, jacobian_spectrum
from adamflow.flows import AbstractFlow
from adamflow.optimizers import AdanStage, AMSGradStage

ETA, BETA, GAMMA, EPSILON, DECAY = 0.1, 0.9, 0.5, 0.05, 0.3
CURVATURES = np.array([1.0, 4.0, -2.0, 9.0])
SECOND = jnp.array([0.04, 0.25, 1.0, 0.01])


def ordered(values):
    values = np.asarray(values).astype(complex)
    return values[np.lexsort((values.imag.round(8), values.real.round(8)))]


def adamw(**changes):
    settings = dict(learning_rate=ETA, beta=BETA, gamma=GAMMA, epsilon=EPSILON, weight_decay=DECAY) | changes
    return af.adamw(**settings)


def at_rest(optimizer):
    """θ = m = 0 with v away from 0: there v neither moves θ nor is moved by it."""
    zeros = jnp.zeros(4)
    state = optimizer.initial_state(zeros)
    return zeros, eqx.tree_at(lambda s: s.filters[0]["second_moment"], state, SECOND)


quadratic = af.problems.quadratic(CURVATURES).loss


@pytest.mark.parametrize("iteration", [math.inf, 3])
def test_formula_discrete_step_has_the_2x2_blocks_and_beta(iteration):
    optimizer = adamw()
    spectrum = jacobian_spectrum(optimizer, quadratic, at_rest(optimizer), iteration=iteration, count=12)
    mass, second_mass = (1 if iteration == math.inf else 1 - decay ** (iteration + 1) for decay in (GAMMA, BETA))
    preconditioner = np.sqrt(BETA * np.asarray(SECOND) / second_mass) + EPSILON
    expected = [BETA] * 4
    for s in CURVATURES / preconditioner / mass:
        block = [[GAMMA, (1 - GAMMA) * s], [-ETA * GAMMA, 1 - ETA * DECAY - ETA * (1 - GAMMA) * s]]
        expected.extend(np.linalg.eigvals(block))
    assert isinstance(spectrum, Spectrum)
    np.testing.assert_allclose(ordered(spectrum.values), ordered(expected), atol=1e-12)
    moduli = np.abs(spectrum.values)
    assert np.all(np.diff(moduli) <= 1e-12)
    assert spectrum.converged.all()
    assert np.all(spectrum.residuals < 1e-12)


@pytest.mark.parametrize("order", [1, 2])
def test_formula_flows_have_their_blocks_and_the_filters_rate(order):
    flow = af.GouldTanakaFlow(adamw(), order=order)
    params, memory = at_rest(flow.optimizer)
    state = af.FlowState(params, params if order == 2 else None, memory.filters)
    spectrum = jacobian_spectrum(flow, quadratic, state, iteration=math.inf, count=8 + 4 * order)
    rate, expected = (1 - GAMMA) / GAMMA, [-(1 - BETA) / BETA] * 4
    for h, p in zip(CURVATURES, np.sqrt(SECOND) + EPSILON, strict=True):
        if order == 1:
            block = [[-ETA * DECAY, -ETA / p], [rate * h, -rate]]
        else:
            block = [[0, 1, 0], [-2 * ETA * DECAY, -2, -2 * ETA / p], [rate * h, 0, -rate]]
        expected.extend(np.linalg.eigvals(block))
    np.testing.assert_allclose(ordered(spectrum.values), ordered(expected), atol=1e-12)
    assert np.all(np.diff(np.real(spectrum.values)) <= 1e-12)


@pytest.fixture(scope="module")
def chain():
    """A loss, and a state on the way, for an optimizer whose epsilon is not small there."""
    problem, optimizer = af.problems.chain(12), af.adam(0.02, beta=0.9, gamma=0.5, epsilon=0.1)
    return problem.loss, optimizer, af.iterate(optimizer, problem.loss, problem.params, 20, save_at=[20]).final_state


def test_formula_epsilon_as_in_a_step_written_by_hand(chain):
    loss, _, state = chain
    filters = state[1].filters[0]

    @jax.jit
    @jax.jacfwd
    def jacobian(flat, epsilon):
        theta, m, v = jnp.split(flat, 3)
        g = jax.grad(loss)(theta)
        m, v = 0.5 * m + 0.5 * g, 0.9 * v + 0.1 * g**2
        return jnp.concatenate([theta - 0.02 * m / (1 - 0.5**21) / (jnp.sqrt(v / (1 - 0.9**21)) + epsilon), m, v])

    flat = jnp.concatenate([state[0], filters["first_moment"], filters["second_moment"]])
    for epsilon in (0.0, 0.1):
        expected = np.linalg.eigvals(jacobian(flat, epsilon))
        expected = expected[np.argsort(-np.abs(expected))]
        optimizer = af.adam(0.02, beta=0.9, gamma=0.5, epsilon=epsilon)
        spectrum = jacobian_spectrum(optimizer, loss, state, iteration=20, count=36)
        np.testing.assert_allclose(np.abs(spectrum.values), np.abs(expected), atol=1e-9)
        np.testing.assert_allclose(ordered(spectrum.values), ordered(expected), atol=1e-7)


@pytest.mark.parametrize("kind", ["discrete", *(pytest.param(order, marks=pytest.mark.slow) for order in (1, 2))])
def test_identity_arnoldi_is_dense(chain, kind):
    loss, optimizer, state = chain
    model, iteration = optimizer, 20
    if kind != "discrete":
        model = af.GouldTanakaFlow(optimizer, order=kind)
        zeros = jnp.zeros_like(state[0]) if kind == 2 else None
        state = af.FlowState(state[0], zeros, state[1].filters)
    dense = jacobian_spectrum(model, loss, state, iteration=iteration, count=6, method="dense")
    arnoldi = jacobian_spectrum(model, loss, state, iteration=iteration, count=6, method="arnoldi")
    assert (dense.method, arnoldi.method) == ("dense", "arnoldi")
    assert dense.converged.all()
    assert arnoldi.converged.all()
    np.testing.assert_allclose(arnoldi.values, dense.values, atol=1e-6)
    assert jax.tree.structure(arnoldi.vector) == jax.tree.structure(dense.scales) == jax.tree.structure(state)


@pytest.mark.parametrize(("dtype", "rate"), [(jnp.float32, 1e-25), (jnp.float64, 1e-200)])
def test_formula_rates_whose_squares_underflow(dtype, rate):
    flow, params = af.GouldTanakaFlow(af.sgd(jnp.asarray(rate, dtype))), jnp.ones(12, dtype)
    curvature = jnp.arange(1.0, 13.0, dtype=dtype)

    def loss(params):
        return jnp.sum(curvature * params**2) / 2

    state = flow.initial_state(loss, params)
    for method in ("dense", "arnoldi"):
        spectrum = jacobian_spectrum(flow, loss, state, iteration=0, count=2, method=method)
        np.testing.assert_allclose(np.asarray(spectrum.values) / rate, [-1, -2], rtol=1e-3)
        assert spectrum.converged.all()


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
@pytest.mark.parametrize(
    "record", [af.adam(0.01), af.sgd(0.01), af.adam(0.01, epsilon=0.1)], ids=["adam", "sgd", "eps"]
)
def test_identity_arnoldi_with_as_many_vectors_as_entries_is_dense(record, dtype):
    """The space is full, or invariant before that: no vector is left, and 0/0 is none."""
    params = jnp.ones(2, dtype)

    def loss(params):
        return jnp.sum(jnp.array([1.0, 3.0], dtype) * params**2) / 2

    run = af.iterate(record, loss, params, 20)
    for count in (1, 2):
        dense, arnoldi = (
            jacobian_spectrum(record, loss, run.final_state, iteration=20, count=count, method=method)
            for method in ("dense", "arnoldi")
        )
        np.testing.assert_allclose(arnoldi.values, dense.values, rtol=1e-4)
        assert arnoldi.converged.all()


@pytest.mark.slow
def test_identity_dense_under_jit_and_vmap(chain):
    loss, _, state = chain

    def of_rate(rate):
        return jacobian_spectrum(af.adam(rate, beta=0.9, gamma=0.5, epsilon=0.1), loss, state, iteration=20, count=3)

    rates = jnp.array([0.02, 0.2])
    batch = jax.jit(jax.vmap(of_rate))(rates)
    assert batch.values.shape == batch.residuals.shape == (2, 3)
    assert batch.splits_conjugate_pair.shape == (2,)
    for place, rate in enumerate(rates):
        np.testing.assert_allclose(batch.values[place], of_rate(rate).values, atol=1e-10)


@pytest.mark.parametrize("method", ["dense", "arnoldi"])
def test_identity_a_factor_in_front_of_the_loss_changes_nothing_in_float32(chain, method):
    loss, _, (params, memory) = chain
    exact = jacobian_spectrum(af.adam(0.02, beta=0.9, gamma=0.5), loss, (params, memory), iteration=20, count=2)
    factor = 1e-5
    filters = memory.filters[0]
    scaled = {"first_moment": factor * filters["first_moment"], "second_moment": factor**2 * filters["second_moment"]}
    state = (params, eqx.tree_at(lambda s: s.filters[0], memory, scaled))
    single = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), state)
    spectrum = jacobian_spectrum(
        af.adam(0.02, beta=0.9, gamma=0.5), Scaled(loss, factor), single, iteration=20, count=2, method=method
    )
    assert spectrum.values.dtype == jnp.complex64
    np.testing.assert_allclose(spectrum.values, exact.values, atol=2e-4)


class Scaled(eqx.Module):
    loss: eqx.Module
    factor: float

    def __call__(self, params):
        return self.factor * self.loss(params)


@pytest.mark.parametrize("method", ["dense", "arnoldi"])
def test_identity_a_conjugate_pair_that_is_cut_says_so(method):
    # Four coordinates that all turn: every eigenvalue above those of v is one of a pair.
    loss, optimizer = af.problems.quadratic(np.arange(1.0, 5.0)).loss, adamw(learning_rate=0.01, beta=0.5, gamma=0.9)
    start, memory = at_rest(optimizer)
    for count, cut in ((1, True), (2, False), (3, True)):
        spectrum = jacobian_spectrum(optimizer, loss, (start, memory), iteration=math.inf, count=count, method=method)
        assert bool(spectrum.splits_conjugate_pair) == cut
        assert ("a conjugate is left out" in str(spectrum)) == cut
        assert np.all(np.imag(spectrum.values[::2]) > 0)
        np.testing.assert_array_equal(spectrum.values[1:2], np.conj(spectrum.values[:1])[: count - 1])


@eqx.filter_jit
def product_with_jacobian(optimizer, loss, state, iteration, vector):
    def step(state):
        params, memory = state
        direction, memory = optimizer.update(jax.grad(loss)(params), memory, iteration)
        return optimizer.apply(params, direction), memory

    return jax.jvp(step, (state,), (vector,))[1]


def check_residual(spectrum, optimizer, loss, state, iteration):
    """Compute the first residual anew, in the norm that the record names."""

    parts = [jax.tree.map(part, spectrum.vector) for part in (jnp.real, jnp.imag)]
    scales = ravel_pytree(spectrum.scales)[0]
    product = eqx.Partial(product_with_jacobian, optimizer, loss, state, jnp.asarray(iteration))
    vector, image = ((ravel_pytree(x)[0] + 1j * ravel_pytree(y)[0]) / scales for x, y in (parts, map(product, parts)))
    np.testing.assert_allclose(jnp.linalg.norm(vector), 1, rtol=1e-10)
    residual = jnp.linalg.norm(image - spectrum.values[0] * vector)
    np.testing.assert_allclose(residual, spectrum.residuals[0], rtol=1e-3, atol=1e-12)
    assert bool(spectrum.converged[0]) == (residual <= np.finfo(float).eps ** 0.5 * np.abs(spectrum.values[0]))


@pytest.mark.parametrize("max_products", [1, 3000])
def test_identity_residual_is_what_it_says(chain, max_products):
    loss, optimizer, state = chain
    spectrum = jacobian_spectrum(
        optimizer, loss, state, iteration=20, count=1, method="arnoldi", max_products=max_products
    )
    assert spectrum.converged[0] == (max_products > 1)
    check_residual(spectrum, optimizer, loss, state, 20)


@pytest.mark.slow
def test_identity_residual_on_a_transformer_with_all_its_parameters():
    problem = af.problems.char_transformer(layers=1, heads=1, width=4, context=4, batch_size=2)
    optimizer = af.adam(1e-3, beta=0.99, gamma=0.9, epsilon=1e-3)
    gradient = jax.jit(lambda params: jax.grad(problem.loss)(params))(problem.params)
    _, memory = optimizer.update(gradient, optimizer.initial_state(problem.params), 0)
    state = (problem.params, memory)
    spectrum = jacobian_spectrum(optimizer, problem.loss, state, iteration=1, count=2)
    assert spectrum.method == "arnoldi"
    size = sum(leaf.size for leaf in jax.tree.leaves(problem.params))
    assert sum(leaf.size for leaf in jax.tree.leaves(spectrum.vector)) == 3 * size
    assert f"arnoldi, {spectrum.products} products" in str(spectrum)
    check_residual(spectrum, optimizer, problem.loss, state, 1)


def test_identity_other_memory_belongs_to_the_state_and_whole_numbers_do_not(chain):
    loss, params = quadratic, jnp.ones(4)
    optimizer = af.Optimizer(ETA, (AdanStage(0.99, 0.9, 0.8, 0.2), AMSGradStage(0.99, 0.9)), epsilon=EPSILON)
    memory = jax.tree.map(lambda leaf: leaf + 0.5, optimizer.initial_state(params))
    assert memory.previous_inputs[1] is None
    # Of each parameter: itself, Adan's three filters and last gradient, AMSGrad's two filters and maximum.
    spectrum = jacobian_spectrum(optimizer, loss, (params, memory), iteration=1, count=4 * 8)
    assert spectrum.products == 4 * 8
    assert spectrum.converged.all()
    counted = jacobian_spectrum(CountingFlow(adamw()), loss, (params, jnp.array(3)), iteration=0, count=4)
    np.testing.assert_allclose(counted.values, np.sort(-3 * CURVATURES)[::-1], atol=1e-12)


class CountingFlow(AbstractFlow):
    """dθ/dn = −k g with a whole number k in its state."""

    optimizer: af.Optimizer

    def initial_state(self, loss, params):
        return params, jnp.array(3)

    def vector_field(self, time, state, loss):
        return -state[1] * jax.grad(loss)(state[0]), jnp.array(0)

    def params(self, state):
        return state[0]

    def snapshot(self, time, state, loss):
        raise NotImplementedError


@pytest.mark.parametrize("make", [af.adam, af.signsgd])
def test_failure_there_is_no_jacobian_at_a_minimum_without_epsilon(make):
    """A coordinate whose gradient is 0 for ever is no obstacle, one whose gradient is 0 at a point alone is."""
    optimizer, zeros = make(ETA), jnp.zeros(4)
    state = (zeros, optimizer.initial_state(zeros))
    with pytest.raises(ValueError, match=r"does not exist at this state: .* where v = 0; use epsilon > 0"):
        jacobian_spectrum(optimizer, quadratic, state, iteration=math.inf)
    flat = jacobian_spectrum(optimizer, af.problems.quadratic(zeros).loss, state, iteration=math.inf, count=4)
    np.testing.assert_array_equal(flat.values, [1] * 4)
    if make is af.adam:
        flow = af.GouldTanakaFlow(optimizer)
        with pytest.raises(ValueError, match=r"does not exist at this state: .* where v = 0; use epsilon > 0"):
            jacobian_spectrum(flow, quadratic, flow.initial_state(quadratic, zeros), iteration=math.inf)
        traced = jax.jit(lambda rate: jacobian_spectrum(af.adam(rate), quadratic, state, iteration=math.inf, count=2))
        spectrum = traced(ETA)
        assert np.isnan(spectrum.values).all()
        assert "not differentiable where v = 0; use epsilon > 0" in str(spectrum)


def test_failure_states_of_another_model():
    optimizer = adamw()
    state = at_rest(optimizer)
    flow = af.GouldTanakaFlow(optimizer, order=2)
    of_order_1 = af.FlowState(state[0], None, state[1].filters)
    for wrong, got in ((state, r"\(params, OptimizerState\) of the discrete step"), (of_order_1, "FlowState")):
        with pytest.raises(
            TypeError, match=rf"initial_state returns, a FlowState with all its parts, got {got}; hand in"
        ):
            jacobian_spectrum(flow, quadratic, wrong, iteration=0)
    with pytest.raises(TypeError, match=r"'flow of order 2, .*' is what its initial_state returns, got float; hand in"):
        jacobian_spectrum(flow, quadratic, 1.0, iteration=0)


def test_failure_what_has_not_converged_is_marked_with_its_residual(chain):
    loss, optimizer, state = chain
    spectrum = jacobian_spectrum(
        optimizer, loss, state, iteration=20, count=4, method="arnoldi", max_products=1, depth=8, tolerance=1e-10
    )
    assert not spectrum.converged.all()
    late = ~np.asarray(spectrum.converged)
    assert np.all(np.asarray(spectrum.residuals)[late] > 1e-10 * np.abs(spectrum.values).max())
    words = str(spectrum)
    assert f"{4 - late.sum()} of 4 converged" in words
    assert words.count("not converged") == late.sum()


@pytest.mark.usefixtures("unchecked")
def test_failure_of_bad_input(chain):
    loss, optimizer, state = chain

    def spectrum(model=optimizer, loss=loss, state=state, iteration=20, **settings):
        return jacobian_spectrum(model, loss, state, iteration=iteration, **settings)

    wrong = jax.tree.map(lambda leaf: leaf * jnp.nan, state)
    for method in ("dense", "arnoldi"):
        with pytest.raises(ValueError, match=r"the Jacobian is not finite at this state; .*epsilon > 0"):
            spectrum(state=wrong, method=method)
    with pytest.raises(ValueError, match="traced by jit or vmap, where only method='dense' works"):
        jax.jit(lambda rate: spectrum(af.adam(rate), method="arnoldi").values)(0.1)
    with pytest.raises(ValueError, match="count must be at most the number of entries of the state, 36, got 37"):
        spectrum(count=37)
    with pytest.raises(TypeError, match=r"a discrete step is \(params, OptimizerState\), got .*; hand in Trajectory"):
        spectrum(state=state[0])
    with pytest.raises(ValueError, match=r"iteration must lie in \[0, inf\), got -1.0; take that of the state"):
        spectrum(iteration=-1)
    with pytest.raises(ValueError, match=r"tolerance must lie in \(0, 1\), got 0.0"):
        spectrum(tolerance=0.0)
    with pytest.raises(ValueError, match=r"tolerance must be a single number, got \[0.1, 0.2\], a list"):
        spectrum(tolerance=[0.1, 0.2])
    with pytest.raises(ValueError, match="method must be one of 'auto', 'dense', 'arnoldi', got 'lanczos'"):
        spectrum(method="lanczos")
    with pytest.raises(ValueError, match="depth must be a whole number of at least 10, got 3"):
        spectrum(method="arnoldi", depth=3)
