"""What objects show of themselves: as text, in Jupyter, and as a Dataset."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import adamflow as af

OPTIMIZER = af.adamw(1e-3, beta=0.99, weight_decay=0.1)
PARAMS = {"layers": [{"weight": jnp.ones((2, 3)), "bias": jnp.zeros(3)}], "scale": jnp.ones(())}


def loss(params):
    return sum(jnp.sum((leaf - 2) ** 2) for leaf in jax.tree.leaves(params))


@pytest.fixture(scope="module")
def run():
    return af.iterate(OPTIMIZER, loss, PARAMS, 20, save_at=[0, 10, 20])


@pytest.fixture(scope="module")
def batch():
    def one(rate):
        return af.iterate(af.sgd(rate), lambda p: jnp.sum(p**4), jnp.array([3.0, 1.0]), 10)

    return jax.vmap(one)(jnp.array([1e-3, 1.0]))


def test_formula_repr_of_an_optimizer_is_the_call_that_makes_it():
    text = "Optimizer(learning_rate=0.001, stages=(AdamStage(beta=0.99, gamma=0.9),), weight_decay=0.1, name='adamw')"
    assert repr(OPTIMIZER) == str(OPTIMIZER) == text
    assert eval(text, vars(af)) == OPTIMIZER
    flow = af.GouldTanakaFlow(OPTIMIZER, order=2)
    assert repr(flow) == f"GouldTanakaFlow(optimizer={text}, order=2)"
    assert eval(repr(flow), vars(af)) == flow


def test_formula_repr_of_numbers_in_single_precision_of_batches_and_traced():
    stage = af.AdamStage(beta=jnp.array([0.9, 0.99], jnp.float32), gamma=jnp.linspace(0, 0.9, 10))
    optimizer = af.Optimizer(jnp.asarray(1e-3, jnp.float32), (stage,))
    text = repr(optimizer)
    assert "learning_rate=0.001, " in text
    assert "beta=[0.9, 0.99], gamma=<10 numbers from 0.0 to 0.9>" in text
    shown = []
    jax.jit(lambda beta: shown.append(repr(af.adam(1e-3, beta=beta))))(0.9)
    assert "beta=<traced float64>" in shown[0]


def test_identity_equinox_shows_an_optimizer_within_a_module_as_it_shows_itself():
    class Holder(eqx.Module):
        optimizer: af.Optimizer

    # Equinox may break the line.
    shown = "".join(repr(Holder(OPTIMIZER)).split())
    assert "".join(repr(OPTIMIZER).split()) in shown


def test_formula_text_of_a_run(run):
    lines = str(run).splitlines()
    assert lines[0] == "adamw, discrete: 3 saved iterations, n = 0 to 20"
    assert lines[1] == "  params   layers.0.bias 3×3, layers.0.weight 3×2×3, scale 3"
    assert lines[2] == "  outcome  completed: reached iteration 20."
    assert lines[3].startswith("  cost     20 gradients, 20 accepted steps, ")
    assert len(lines) == 4
    assert repr(run) == str(run)
    assert repr(run.outcome) == "Outcome('completed: reached iteration 20.')"
    assert repr(run.stats).startswith("Stats(gradient_evaluations=20, accepted_steps=20, rejected_steps=0, ")


def test_formula_text_of_a_batch(batch):
    lines = str(batch).splitlines()
    assert lines[0] == "sgd, discrete: 11 saved iterations, n = 0 to 10, a batch of 2 runs"
    assert "2 runs: 1 completed, 1 diverged. The first that did not complete is number 1: diverged: after" in lines[2]
    assert lines[3].endswith(" in all runs")


def test_identity_text_of_what_transformations_make_of_a_run(run):
    """`repr` never fails: debuggers and error messages need it."""
    assert "Trajectory" in repr(jax.tree.map(lambda _: None, run))
    assert "ShapeDtypeStruct" in repr(jax.eval_shape(lambda: run))
    shown = []
    jax.jit(lambda run: shown.append(repr(run)))(run)
    assert "outcome  unknown while jax is tracing the run" in shown[0]
    assert jax.tree.map(lambda _: None, run)._repr_html_() is None


def test_identity_jupyter_shows_what_text_shows(run):
    comparison = af.compare(run, run)
    assert repr(comparison) == str(comparison)
    for shown, words in (
        (run, ("adamw, discrete: 3 saved iterations", "completed: reached iteration 20.")),
        (comparison, ("adamw, discrete against adamw, discrete", "max. relative", "[&#x27;scale&#x27;]")),
        (OPTIMIZER, ("Optimizer", "weight_decay", "0.1")),
        (run.outcome, ("completed: reached iteration 20.",)),
        (af.Convergence(np.array([0.1, 0.2]), np.array([1e-3, 2e-3]), "flow <1>"), ("flow &lt;1&gt;, fitted order 1",)),
    ):
        html = shown._repr_html_()
        assert html.startswith("<table>")
        assert html.endswith("</table>")
        assert all(word in html for word in words)


def test_identity_dataset_holds_the_leaves_of_a_run(run, tmp_path):
    data = run.to_xarray()
    assert data["params.layers.0.weight"].dims == (
        "iteration",
        "params.layers.0.weight_dim_0",
        "params.layers.0.weight_dim_1",
    )
    np.testing.assert_array_equal(data["params.layers.0.weight"], run.params["layers"][0]["weight"])
    np.testing.assert_array_equal(data["params.scale"].sel(iteration=10), run.params["scale"][1])
    expected = {"name": run.name, "outcome": "completed", "last_valid_iteration": 20, "gradient_evaluations": 20}
    assert {name: data.attrs[name] for name in expected} == expected
    assert data.iteration.attrs["units"] == "1"
    data.to_netcdf(tmp_path / "run.nc")


def test_identity_dataset_of_observed_values_and_error_estimates():
    problem = af.problems.chain(3)
    look = lambda snapshot: (snapshot.loss, {"m": snapshot.filters[0]["first_moment"]})  # noqa: E731
    run = af.iterate(OPTIMIZER, problem.loss, problem.params, 5, observe=look)
    data = run.to_xarray()
    assert set(data.data_vars) == {"observed.0", "observed.1.m"}
    np.testing.assert_array_equal(data["observed.1.m"], run.observed[1]["m"])
    flow = af.GouldTanakaFlow(OPTIMIZER)
    run = af.solve(flow, problem.loss, problem.params, 5, estimate_error=True)
    np.testing.assert_array_equal(run.to_xarray().error_estimate, run.error_estimate)
    assert run.to_xarray().params.dims == ("iteration", "params_dim_0")


def test_identity_dataset_of_a_batch(batch):
    data = batch.to_xarray()
    assert data.params.dims == ("batch_dim_0", "iteration", "params_dim_0")
    assert data.outcome.values.tolist() == ["completed", "diverged"]
    assert str(data.outcome_message[1].values).startswith("diverged: after iteration 2 ")
    np.testing.assert_array_equal(data.last_valid_iteration, batch.outcome.last_valid_iteration)


def test_failure_dataset_of_a_run_that_is_traced_or_whose_iterations_differ(run, batch):
    with pytest.raises(ValueError, match="to_xarray needs the numbers of a run, but jax is tracing it"):
        jax.jit(lambda run: run.to_xarray())(run)
    other = eqx.tree_at(lambda run: run.iterations, batch, batch.iterations.at[0, 3].add(0.5))
    with pytest.raises(ValueError, match="the runs of the batch were saved at different iterations; give all the same"):
        other.to_xarray()


def test_identity_leaves_whose_paths_look_alike_have_names_of_their_own():
    params = {"a": {"b": jnp.ones(2)}, "a.b": jnp.ones(2)}
    data = af.iterate(OPTIMIZER, loss, params, 2).to_xarray()
    assert len(data.data_vars) == 2
