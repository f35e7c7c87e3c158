"""Pictures of runs show the runs' own numbers under the runs' own names."""

import dataclasses

import jax
import jax.numpy as jnp
import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest

import adamflow as af
from adamflow.plotting import convergence, errors, trajectories
from adamflow.plotting.edge import sharpness_of_run


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


def run(name, rows=60, scale=1.0):
    """A made-up trajectory of 5 parameters in two leaves."""
    n = jnp.arange(rows, dtype=float)
    params = {"a": scale * n[:, None, None] * jnp.arange(1.0, 5.0).reshape(2, 2), "b": scale * jnp.sqrt(n)}
    zero = jnp.zeros((), int)
    stats = af.Stats(zero, zero, zero, zero, None)
    return af.Trajectory(
        iterations=n,
        params=params,
        observed=None,
        initial_params=jax.tree.map(lambda leaf: leaf[0], params),
        final_state=None,
        outcome=af.Outcome(zero, n[-1]),
        stats=stats,
        name=name,
    )


def table(trajectory):
    return np.column_stack([np.asarray(trajectory.params["a"]).reshape(-1, 4), trajectory.params["b"]])


def comparison(name="flow", reference="iterates", norm="euclidean"):
    n = jnp.arange(4.0)
    relative = jnp.array([0.0, 0.1, 0.2, 0.4])
    return af.Comparison(n, 10 * relative, relative, jnp.ones_like(relative), None, None, (reference, name), norm)


def labels(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def test_identity_trajectories_draw_the_numbers_of_the_runs():
    discrete, continuous = run("the iterates"), run("the flow", rows=7, scale=1.5)
    ax = trajectories(discrete, continuous, parameters=[4, 0, 3])
    circles, lines = ax.lines[::2], ax.lines[1::2]
    for column, circle, line in zip((4, 0, 3), circles, lines, strict=True):
        np.testing.assert_array_equal(circle.get_xydata(), np.column_stack([np.arange(60), table(discrete)[:, column]]))
        np.testing.assert_array_equal(line.get_xydata(), np.column_stack([np.arange(7), table(continuous)[:, column]]))
        assert (circle.get_marker(), circle.get_linestyle(), line.get_linestyle()) == ("o", "None", "-")
        assert mpl.colors.same_color(circle.get_color(), line.get_color())
    assert labels(ax) == ["the iterates", "the flow"]
    assert ax.get_xlabel() == "iteration n"
    ax.figure.draw_without_rendering()


def test_identity_trajectories_choose_by_seed_and_take_all_where_there_are_few():
    def drawn(**options):
        ax = trajectories(run("a"), run("b"), **options)
        plt.close(ax.figure)
        return np.array([line.get_ydata()[2] for line in ax.lines[::2]])

    np.testing.assert_array_equal(np.sort(drawn()), np.sort(table(run("a"))[2]))
    twos = [drawn(parameters=2, seed=seed) for seed in range(20)]
    np.testing.assert_array_equal(drawn(parameters=2, seed=3), twos[3])
    assert all(len(set(two)) == 2 for two in twos)
    assert len({tuple(two) for two in twos}) > 3


def test_identity_axes_given_are_drawn_on_and_returned():
    _, axes = plt.subplots(3)
    assert trajectories(run("a"), run("b"), ax=axes[0]) is axes[0]
    assert errors(comparison(), ax=axes[1]) is axes[1]
    assert sharpness_of_run(np.arange(3.0), np.ones(3), 38.0, ax=axes[2]) is axes[2]
    assert plt.get_fignums() == [1]


def test_identity_errors_draw_the_numbers_of_the_comparisons():
    pair = comparison("order 1"), comparison("order 2")
    for relative in (True, False):
        ax = errors(*pair, relative=relative)
        for line, each in zip(ax.lines, pair, strict=True):
            np.testing.assert_array_equal(line.get_xdata(), each.iterations)
            np.testing.assert_array_equal(line.get_ydata(), each.relative_error if relative else each.absolute_error)
        assert ax.get_yscale() == "log"
        assert labels(ax) == ["order 1", "order 2"]
        assert ("distance moved" in ax.get_ylabel()) == relative
        ax.figure.draw_without_rendering()
    ax = errors(comparison("x", "Adam", "maximum"), comparison("y", "AdamW", "maximum"))
    assert labels(ax) == ["x against Adam", "y against AdamW"]
    assert "largest error" in ax.get_ylabel()


def test_identity_sharpness_draws_values_and_every_edge():
    n, values = np.arange(5.0), np.array([50.0, 1.0, 2.0, 30.0, 40.0])
    ax = sharpness_of_run(n, values, {"iterates": 38.0, "flow of order 2": 2.111}, label="Adam")
    np.testing.assert_array_equal(ax.lines[0].get_xydata(), np.column_stack([n, values]))
    assert [line.get_ydata()[0] for line in ax.lines[1:]] == [38.0, 2.111]
    assert len({line.get_linestyle() for line in ax.lines}) == 3
    assert labels(ax) == ["Adam", "iterates, 38", "flow of order 2, 2.11"]
    assert labels(sharpness_of_run(n, values, 38.0))[1] == "edge of stability, 38"


def test_identity_convergence_draws_errors_and_slopes():
    result = af.Convergence(np.array([0.02, 0.01]), np.array([8e-3, 1e-3]), "some flow")
    ax = convergence(result)
    np.testing.assert_array_equal(ax.lines[0].get_xydata(), np.column_stack([result.learning_rates, result.errors]))
    assert labels(ax) == ["some flow: slope 3.00"]
    differences = np.array([[3e-3, 4e-3], [3e-4, 4e-4]])
    weak = af.noise.WeakConvergence(np.array([0.02, 0.01]), differences, differences / 100, "stochastic flow")
    ax = convergence(weak)
    np.testing.assert_allclose(ax.lines[0].get_ydata(), [5e-3, 5e-4])
    assert ax.get_ylabel() == "weak error"
    with pytest.raises(ValueError, match="convergence needs at least one result"):
        convergence()


def test_failure_trajectories_say_what_is_wrong():
    good = run("good")
    without = dataclasses.replace(good, params=None, name="observed")
    with pytest.raises(ValueError, match=r"the run 'observed' holds no parameters.*return snapshot.params from it"):
        trajectories(good, without)
    batch = dataclasses.replace(good, iterations=jnp.zeros((3, 60)), name="batch")
    with pytest.raises(ValueError, match=r"the run 'batch' is a batch of shape \(3,\); take one lane"):
        trajectories(batch, good)
    other = dataclasses.replace(good, params=good.params["a"])
    with pytest.raises(ValueError, match="the runs hold 5 and 4 parameters; give two runs of the same problem"):
        trajectories(good, other)
    assert not plt.get_fignums()


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        (0, "parameters must be a whole number of at least 1, got 0"),
        ([0, 5], r"parameters must lie in \[0, 5\), the places of the runs' parameters, got 5"),
        ([-1], r"parameters must lie in \[0, 5\), .*, got -1"),
        ([], "parameters must be a count or a sequence of whole numbers"),
    ],
)
def test_failure_parameters_that_are_not_there(parameters, message):
    with pytest.raises(ValueError, match=message):
        trajectories(run("a"), run("b"), parameters=parameters)


def test_failure_errors_and_sharpness_say_what_is_wrong():
    with pytest.raises(ValueError, match=r"errors needs at least one comparison, got none; make one with af\.compare"):
        errors()
    with pytest.raises(ValueError, match=r"different norms, \['euclidean', 'maximum'\]; one axis shows one norm"):
        errors(comparison(), comparison(norm="maximum"))
    with pytest.raises(ValueError, match=r"one number for each iteration, got \(2,\) for \(3,\)"):
        sharpness_of_run([0, 1, 2], [1.0, 1.0], 38.0)
    with pytest.raises(ValueError, match=r"edge of stability must be positive, got 0\.0"):
        sharpness_of_run(np.arange(3.0), np.ones(3), 0.0)
