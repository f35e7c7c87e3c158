"""The monitor of PyTorch's training loops, the readers of its optimizers, and models as losses."""

import math
import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import adamflow as af
from adamflow.analysis import preconditioned_sharpness, training_report

torch = pytest.importorskip("torch", reason="the extra adamflow[torch] is not installed")
import adamflow.torch as at  # noqa: E402

INPUTS = np.random.default_rng(0).normal(size=(12, 3))
TARGETS = np.sin(INPUTS.sum(axis=1, keepdims=True))


def perceptron(dtype=torch.float64):
    torch.manual_seed(1)
    return torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1)).to(dtype)


def closure_of(model, dtype=torch.float64):
    inputs, targets = (torch.tensor(array, dtype=dtype) for array in (INPUTS, TARGETS))
    return lambda: (model(inputs) - targets).square().mean()


def jax_loss(params):
    hidden = jnp.tanh(INPUTS @ params["0.weight"].T + params["0.bias"])
    return jnp.mean((hidden @ params["2.weight"].T + params["2.bias"] - TARGETS) ** 2)


def params_of(model):
    return {name: jnp.asarray(parameter.detach().numpy()) for name, parameter in model.named_parameters()}


def train(model, optimizer, closure, steps=8):
    for _ in range(steps):
        optimizer.zero_grad()
        closure().backward()
        optimizer.step()


def groups(model):
    weights, biases = ([leaf for leaf in model.parameters() if leaf.ndim == n] for n in (2, 1))
    return [{"params": weights, "weight_decay": 0.3}, {"params": biases, "lr": 0.03, "weight_decay": 0.0}]


MAKERS = {
    "Adam": lambda model: torch.optim.Adam(model.parameters(), lr=0.01),
    "Adam with a penalty": lambda model: torch.optim.Adam(model.parameters(), lr=0.01, weight_decay=0.2),
    "AdamW": lambda model: torch.optim.AdamW(model.parameters(), lr=0.01, betas=(0.8, 0.95), eps=1e-6),
    "AdamW fused": lambda model: torch.optim.AdamW(model.parameters(), lr=0.01, fused=True),
    "AdamW foreach": lambda model: torch.optim.AdamW(model.parameters(), lr=0.01, foreach=True),
    "AdamW named": lambda model: torch.optim.AdamW(model.named_parameters(), lr=0.01),
    "AdamW in groups": lambda model: torch.optim.AdamW(groups(model), lr=0.01),
    "RMSprop": lambda model: torch.optim.RMSprop(model.parameters(), lr=0.01, alpha=0.9),
    "RMSprop with momentum": lambda model: torch.optim.RMSprop(
        model.parameters(), lr=0.01, momentum=0.7, weight_decay=0.1
    ),
    "SGD": lambda model: torch.optim.SGD(model.parameters(), lr=0.01),
    "SGD with momentum": lambda model: torch.optim.SGD(
        model.parameters(), lr=0.01, momentum=0.8, dampening=0.3, weight_decay=0.1
    ),
    "Adam with amsgrad": lambda model: torch.optim.Adam(model.parameters(), lr=0.01, betas=(0.8, 0.9), amsgrad=True),
    "AdamW with amsgrad, fused": lambda model: torch.optim.AdamW(model.parameters(), lr=0.01, amsgrad=True, fused=True),
    "NAdam": lambda model: torch.optim.NAdam(model.parameters(), lr=0.01, weight_decay=0.1),
    "NAdam, decoupled": lambda model: torch.optim.NAdam(
        model.parameters(), lr=0.01, weight_decay=0.1, decoupled_weight_decay=True, momentum_decay=0.0
    ),
    "KAdam with amsgrad": lambda model: at.KAdam(
        model.parameters(), lr=0.01, k=2, betas=(0.8, 0.9), weight_decay=0.1, amsgrad=True
    ),
    "KAdam": lambda model: at.KAdam(model.parameters(), lr=0.01, k=2, weight_decay=0.1),
}


# --- identity --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MAKERS)
def test_identity_the_reading_makes_the_next_step_of_torch(name):
    model = perceptron()
    closure, optimizer = closure_of(model), MAKERS[name](model)
    train(model, optimizer, closure)
    params = params_of(model)
    reading = at.from_torch(optimizer, model, iteration=8 if name.startswith("SGD") else None)
    assert reading.iteration == 8

    def penalized(tree):
        if reading.penalties is None:
            return jax_loss(tree)
        return jax_loss(tree) + sum(reading.penalties[key] * jnp.sum(leaf**2) / 2 for key, leaf in tree.items())

    direction, _ = reading.optimizer.update(jax.grad(penalized)(params), reading.optimizer_state, 8)
    expected = reading.optimizer.apply(params, direction)
    train(model, optimizer, closure, 1)
    for key, leaf in params_of(model).items():
        # NAdam of PyTorch keeps the product of its momenta in single precision.
        atol = 1e-11 if name.startswith("NAdam") else 1e-13
        np.testing.assert_allclose(leaf, expected[key], rtol=1e-10, atol=atol)


@pytest.mark.parametrize("name", ["AdamW", "AdamW in groups", "Adam with a penalty", "KAdam", "SGD with momentum"])
def test_identity_monitor_agrees_with_jax_and_with_the_dense_hessian(name):
    model = perceptron()
    closure, optimizer = closure_of(model), MAKERS[name](model)
    train(model, optimizer, closure)
    monitor = at.Monitor(model, optimizer, closure, plain_sharpness=True, tolerance=1e-9)
    monitor._calls = 8
    report = monitor.look()
    reading = at.from_torch(optimizer, model, iteration=8 if name.startswith("SGD") else None)
    penalties = reading.penalties or dict.fromkeys(params_of(model), 0.0)

    def penalized(tree):
        return jax_loss(tree) + sum(penalties[key] * jnp.sum(leaf**2) / 2 for key, leaf in tree.items())

    params = params_of(model)
    ours = training_report(penalized, params, *reading, tolerance=1e-9).scalars()
    theirs = report.scalars()
    for scalars in (ours, theirs):
        for key in ("preconditioned_sharpness_residual", "sharpness_residual", "products"):
            scalars.pop(key)
    assert theirs == pytest.approx(ours, rel=1e-7)
    flat, unravel = jax.flatten_util.ravel_pytree(params)
    hessian = np.asarray(jax.jit(jax.hessian(lambda x: penalized(unravel(x))))(flat))
    assert report.sharpness == pytest.approx(np.linalg.eigvalsh(hessian)[-1], rel=1e-8)


def test_identity_single_precision_agrees_to_its_rounding():
    reports = []
    for dtype in (torch.float32, torch.float64):
        model = perceptron().to(dtype)
        closure = closure_of(model, dtype)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        train(model, optimizer, closure)
        reports.append(at.Monitor(model, optimizer, closure, plain_sharpness=True, tolerance=1e-5).look())
    for name in ("loss", "preconditioned_sharpness", "sharpness", "update_curvature", "update_norm"):
        assert getattr(reports[0], name) == pytest.approx(getattr(reports[1], name), rel=1e-4)
    assert reports[0].vector["0.bias"].dtype == jnp.float32


def test_identity_differences_of_gradients_agree_with_second_derivatives():
    model = perceptron()
    closure, optimizer = closure_of(model), MAKERS["AdamW"](model)
    train(model, optimizer, closure)
    exact = at.Monitor(model, optimizer, closure).look()
    differences = at.Monitor(model, optimizer, closure, second_derivatives=False).look()
    for name in ("preconditioned_sharpness", "update_curvature", "gradient_curvature"):
        assert getattr(differences, name) == pytest.approx(getattr(exact, name), rel=1e-5)


class Noisy(torch.nn.Module):
    """BatchNorm, whose buffers move, and dropout, which draws random numbers."""

    def __init__(self):
        super().__init__()
        self.layers = torch.nn.Sequential(
            torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4), torch.nn.Dropout(0.5), torch.nn.Linear(4, 1)
        )

    def forward(self, inputs):
        return self.layers(inputs)


def everything(model):
    """All that a look must leave alone, as plain data."""
    gradients = [None if leaf.grad is None else leaf.grad.clone() for leaf in model.parameters()]
    places = [leaf.data_ptr() for leaf in model.parameters()]
    return dict(
        values={name: value.clone() for name, value in model.state_dict().items()},
        gradients=gradients,
        places=places,
        modes=[module.training for module in model.modules()],
        torch=torch.get_rng_state(),
        numpy=np.random.get_state()[1].copy(),  # noqa: NPY002
        python=random.getstate(),
    )


def assert_same(one, other):
    assert one["modes"] == other["modes"]
    assert one["places"] == other["places"]
    assert one["python"] == other["python"]
    np.testing.assert_array_equal(one["numpy"], other["numpy"])
    assert torch.equal(one["torch"], other["torch"])
    for name, value in one["values"].items():
        assert torch.equal(value, other["values"][name]), name
    for first, second in zip(one["gradients"], other["gradients"], strict=True):
        assert (first is None) == (second is None)
        assert first is None or torch.equal(first, second)


@pytest.mark.parametrize("second_derivatives", [True, False])
def test_identity_a_look_leaves_the_model_and_the_random_states_as_they_were(second_derivatives, unchecked):
    # Unchecked, since beartype draws from Python's random numbers which items it checks.
    torch.manual_seed(0)
    model = Noisy().double()
    inputs, targets = torch.tensor(INPUTS), torch.tensor(TARGETS)

    def closure():
        # In train mode, so that BatchNorm's averages move, with dropout off; and it draws a random number.
        model.train()
        model.layers[2].eval()
        torch.rand(1)
        np.random.rand()  # noqa: NPY002
        random.random()
        return (model(inputs) - targets).square().mean()

    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    train(model, optimizer, closure, 3)
    model.eval()
    model.layers[2].train()
    before = everything(model)
    monitor = at.Monitor(model, optimizer, closure, second_derivatives=second_derivatives)
    monitor.look()
    assert_same(before, everything(model))
    loss = at.loss(model, closure)
    jax.grad(loss)(loss.params)
    assert_same(before, everything(model))


def test_identity_a_monitored_run_is_bit_identical():
    paths = []
    for watched in (False, True):
        model = perceptron()
        closure, optimizer = closure_of(model), MAKERS["AdamW"](model)
        monitor = at.Monitor(model, optimizer, closure, every=3)
        for _ in range(9):
            train(model, optimizer, closure, 1)
            if watched:
                monitor()
        paths.append(params_of(model))
    for name, leaf in paths[0].items():
        np.testing.assert_array_equal(leaf, paths[1][name])


def test_identity_calls_between_looks_evaluate_nothing():
    model = perceptron()
    inner, optimizer = closure_of(model), MAKERS["AdamW"](model)
    calls = []

    def closure():
        calls.append(1)
        return inner()

    train(model, optimizer, inner)
    monitor = at.Monitor(model, optimizer, closure, every=5)
    assert [monitor() for _ in range(4)] == [{}] * 4
    assert not calls
    scalars = monitor()
    assert scalars["preconditioned_sharpness"] > 0
    assert calls


def test_identity_hook_reports_and_dataset():
    model = perceptron()
    closure, optimizer = closure_of(model), MAKERS["AdamW"](model)
    monitor = at.Monitor(model, optimizer, closure, every=4)
    optimizer.register_step_post_hook(monitor)
    train(model, optimizer, closure, 12)
    assert [report.iteration for report in monitor.reports] == [4, 8, 12]
    assert [report.vector is None for report in monitor.reports] == [True, True, False]
    data = monitor.to_xarray()
    assert data["iteration"].values.tolist() == [4, 8, 12]
    np.testing.assert_array_equal(data["ratio"], [report.ratio for report in monitor.reports])
    np.testing.assert_allclose(data["share"].sum("leaf"), 1.0)
    assert monitor.reports[-1].products - 2 <= 10


def test_identity_the_scalars_are_what_a_tensorboard_writer_takes(tmp_path):
    pytest.importorskip("tensorboard", reason="the extra adamflow[frameworks] is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from torch.utils.tensorboard import SummaryWriter

    model = perceptron()
    closure, optimizer = closure_of(model), MAKERS["AdamW"](model)
    monitor = at.Monitor(model, optimizer, closure, every=2)
    with SummaryWriter(tmp_path) as writer:
        for step in range(1, 5):
            train(model, optimizer, closure, 1)
            for name, value in monitor().items():
                writer.add_scalar(name, value, step)
    events = EventAccumulator(str(tmp_path)).Reload()
    assert {"ratio", "edge", "share/0.weight"} <= set(events.Tags()["scalars"])
    for name in events.Tags()["scalars"]:
        found = {event.step: event.value for event in events.Scalars(name)}
        assert found == pytest.approx({r.iteration: r.scalars()[name] for r in monitor.reports}, rel=1e-6)


def test_identity_sharpness_of_each_parameter_and_the_picture():
    model = perceptron()
    closure, optimizer = closure_of(model), MAKERS["AdamW"](model)
    train(model, optimizer, closure)
    monitor = at.Monitor(model, optimizer, closure, leaf_sharpness=True, tolerance=1e-8)
    report = monitor.look()
    ours = training_report(
        jax_loss, params_of(model), *at.from_torch(optimizer, model), leaf_sharpness=True, tolerance=1e-8
    )
    assert report.leaf_sharpness == pytest.approx(ours.leaf_sharpness, rel=1e-7)
    data = monitor.to_xarray()
    np.testing.assert_array_equal(data["leaf_sharpness"][0], list(report.leaf_sharpness.values()))
    figure = af.plotting.training_run(data)
    np.testing.assert_array_equal(figure.axes[1].lines[0].get_ydata(), [report.scaled_sharpness])
    figure.draw_without_rendering()
    with pytest.raises(ValueError, match="got a dataset without loss"):
        af.plotting.training_run(data.drop_vars("loss"))


class Mixed(torch.nn.Module):
    """A layer in double precision before one in single precision."""

    def __init__(self):
        super().__init__()
        self.first, self.last = torch.nn.Linear(3, 4).double(), torch.nn.Linear(4, 1).float()

    def forward(self, inputs):
        return self.last(self.first(inputs).tanh().float())


def test_identity_parameters_of_several_types_are_looked_at_in_the_widest():
    torch.manual_seed(0)
    model, inputs, targets = Mixed(), torch.tensor(INPUTS), torch.tensor(TARGETS)

    def closure():
        return (model(inputs) - targets).square().mean()

    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    train(model, optimizer, closure, 3)
    report = at.Monitor(model, optimizer, closure, tolerance=1e-4).look()
    assert {str(leaf.dtype) for leaf in report.vector.values()} == {"float64"}
    double = Mixed().double()
    double.load_state_dict(model.state_dict())
    double.forward = lambda inputs: double.last(double.first(inputs).tanh())
    other = torch.optim.AdamW(double.parameters(), lr=0.01)
    other.load_state_dict(optimizer.state_dict())
    exact = at.Monitor(double, other, lambda: (double(inputs) - targets).square().mean(), tolerance=1e-4).look()
    assert report.preconditioned_sharpness == pytest.approx(exact.preconditioned_sharpness, rel=1e-3)


def test_identity_looks_wait_while_the_learning_rate_is_0():
    model = perceptron()
    closure, optimizer = closure_of(model), torch.optim.AdamW(model.parameters(), lr=0.0)
    train(model, optimizer, closure, 1)
    monitor = at.Monitor(model, optimizer, closure, every=1)
    assert monitor() == {}
    optimizer.param_groups[0]["lr"] = 1e-3
    assert monitor()["learning_rate"] == pytest.approx(1e-3)


def test_identity_a_parameter_without_gradient_has_no_share():
    model = perceptron()
    model.unused = torch.nn.Parameter(torch.ones(2, dtype=torch.float64))
    closure, optimizer = closure_of(model), MAKERS["AdamW"](model)
    train(model, optimizer, closure)
    assert "had no gradient: unused" in str(at.from_torch(optimizer, model))
    report = at.Monitor(model, optimizer, closure).look()
    assert report.share_by_leaf["unused"] < 1e-6


# --- a model as a loss -----------------------------------------------------------------------------------------------


def test_identity_model_as_a_loss_has_the_values_and_derivatives_of_jax():
    model = perceptron()
    loss = at.loss(model, closure_of(model))
    params = jax.tree.map(lambda leaf: leaf + 0.1, loss.params)
    vector = jax.tree.map(jnp.cos, params)
    np.testing.assert_allclose(loss(params), jax_loss(params), rtol=1e-12)
    for ours, theirs in (
        (jax.grad(loss)(params), jax.grad(jax_loss)(params)),
        (
            jax.jvp(jax.grad(loss), (params,), (vector,))[1],
            jax.jvp(jax.grad(jax_loss), (params,), (vector,))[1],
        ),
        (
            jax.vjp(jax.grad(loss), params)[1](vector)[0],
            jax.vjp(jax.grad(jax_loss), params)[1](vector)[0],
        ),
    ):
        for name, leaf in ours.items():
            np.testing.assert_allclose(leaf, theirs[name], rtol=1e-9, atol=1e-12)


def test_identity_runs_and_analysis_of_a_model_are_those_of_jax():
    model = perceptron()
    loss, optimizer = at.loss(model, closure_of(model)), af.adam(0.01, epsilon=1e-6)
    runs = [af.iterate(optimizer, f, loss.params, 15, save_at=[15]) for f in (loss, jax_loss)]
    for name, leaf in runs[0].params.items():
        np.testing.assert_allclose(leaf, runs[1].params[name], rtol=1e-10)
    params = runs[0].final_state[0]
    ones = jax.tree.map(jnp.ones_like, params)
    sharp = [float(preconditioned_sharpness(f, params, ones).value) for f in (loss, jax_loss)]
    assert sharp[0] == pytest.approx(sharp[1], rel=1e-9)


@pytest.mark.slow
def test_identity_flows_and_spectra_of_a_model_are_those_of_jax():
    model = perceptron()
    loss, optimizer = at.loss(model, closure_of(model)), af.adam(0.01, epsilon=1e-6)
    flows = [af.solve(af.GouldTanakaFlow(optimizer), f, loss.params, 4) for f in (loss, jax_loss)]
    for name, leaf in flows[0].final_state.filters[0]["first_moment"].items():
        np.testing.assert_allclose(leaf, flows[1].final_state.filters[0]["first_moment"][name], rtol=1e-4, atol=1e-7)
    params, state = af.iterate(optimizer, loss, loss.params, 15, save_at=[15]).final_state
    values = [
        af.analysis.jacobian_spectrum(optimizer, f, (params, state), iteration=15).values for f in (loss, jax_loss)
    ]
    np.testing.assert_allclose(values[0], values[1], rtol=1e-6)


# --- failure ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda p: torch.optim.AdamW(p, maximize=True), ValueError, "maximize=True is not described: it ascends"),
        (lambda p: torch.optim.RMSprop(p, centered=True), ValueError, "centered=True is not described"),
        (lambda p: torch.optim.SGD(p, momentum=0.9, nesterov=True), ValueError, "nesterov=True is not described"),
        (lambda p: torch.optim.RAdam(p), TypeError, "reads KAdam, AdamW, Adam, NAdam, RMSprop, SGD, got"),
        (lambda p: torch.optim.AdamW(p, lr=0.0), ValueError, "learning rate of every group is 0"),
        (lambda p: torch.optim.SGD(p, lr=0.1), ValueError, "SGD does not count its steps; give iteration="),
        (
            lambda p: torch.optim.Adam([{"params": p[:1]}, {"params": p[1:], "betas": (0.5, 0.9)}]),
            ValueError,
            "the parameter groups differ in betas",
        ),
    ],
)
def test_failure_optimizers_that_are_not_described(make, error, words):
    model = perceptron()
    optimizer = make(list(model.parameters()))
    train(model, optimizer, closure_of(model), 1)
    with pytest.raises(error, match=words):
        at.from_torch(optimizer, model)


def test_failure_no_step_yet_and_unequal_steps(unchecked):
    model = perceptron()
    optimizer = MAKERS["AdamW"](model)
    with pytest.raises(ValueError, match="has made no step yet"):
        at.from_torch(optimizer, model)
    train(model, optimizer, closure_of(model), 2)
    model[0].weight.grad = None
    optimizer.step()
    with pytest.raises(ValueError, match="different numbers of steps, 2 to 3"):
        at.from_torch(optimizer, model)
    with pytest.raises(ValueError, match="is not one of the model's"):
        at.from_torch(optimizer, perceptron())
    with pytest.raises(TypeError, match="got None"):
        at.from_torch(None)


def look_at(model, closure, **settings):
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    for leaf in model.parameters():
        leaf.grad = torch.ones_like(leaf)
    optimizer.step()
    optimizer.zero_grad()
    return at.Monitor(model, optimizer, closure, **settings).look()


def test_failure_closures(unchecked):
    model = perceptron()
    fine = closure_of(model)

    def backward():
        value = fine()
        value.backward()
        return value

    @torch.no_grad()
    def without_graph():
        return fine()

    for closure, words in (
        (lambda: fine() * (1 + 0.1 * torch.rand(()).double()), "the closure is not deterministic: two calls gave"),
        (lambda: None, "must return the loss, a real scalar tensor, got None"),
        (lambda: torch.ones(3), r"got a tensor of shape \(3,\)"),
        (lambda: fine() * math.nan, "the loss is nan at the present parameters"),
        (without_graph, "depends on no parameter"),
        (
            lambda: fine() + (model[0].weight[0, 0].detach() - model[0].weight[0, 0]).abs().sqrt(),
            "gradient is not finite",
        ),
    ):
        with pytest.raises(ValueError, match=words):
            look_at(model, closure)
    with pytest.raises(ValueError, match=r"without calling backward\(\), which it did"):
        look_at(model, backward)
    assert all(leaf.grad is None for leaf in model.parameters())
    with pytest.raises(ValueError, match="closure must be a function"):
        at.Monitor(model, torch.optim.AdamW(model.parameters()), 3)


def test_failure_dropout_is_said():
    torch.manual_seed(0)
    model = Noisy().double()
    inputs = torch.tensor(INPUTS)
    with pytest.raises(ValueError, match=r"not deterministic.*Dropout.*model\.eval\(\) inside the closure"):
        look_at(model, lambda: model(inputs).square().mean())


class Attention(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.projection = torch.nn.Linear(4, 12)

    def forward(self, inputs):
        query, key, value = self.projection(inputs).chunk(3, dim=-1)
        return torch.nn.functional.scaled_dot_product_attention(query, key, value)


def test_failure_attention_without_second_derivative_and_its_remedies():
    torch.manual_seed(0)
    model, inputs = Attention(), torch.randn(2, 2, 5, 4)
    initial = {name: value.clone() for name, value in model.state_dict().items()}

    def flash():
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.FLASH_ATTENTION):
            return model(inputs).square().mean()

    def exact():
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            return model(inputs).square().mean()

    with pytest.raises(ValueError, match=r"no second derivative in PyTorch .*SDPBackend\.MATH.*second_derivatives="):
        look_at(model, flash)
    model.load_state_dict(initial)
    reference = look_at(model, exact)
    model.load_state_dict(initial)
    by_differences = look_at(model, flash, second_derivatives=False)
    assert by_differences.update_norm == pytest.approx(reference.update_norm, rel=1e-4)
    assert by_differences.preconditioned_sharpness == pytest.approx(reference.preconditioned_sharpness, rel=0.02)


def test_failure_complex_sparse_and_frozen_parameters():
    model = torch.nn.Module()
    model.weight = torch.nn.Parameter(torch.ones(2, dtype=torch.complex64))
    with pytest.raises(ValueError, match=r"weight is complex .*view_as_real"):
        at.loss(model, lambda: model.weight.abs().sum())
    embedding = torch.nn.Embedding(4, 2, sparse=True)
    loss = at.TorchLoss(embedding, lambda: embedding(torch.tensor([1, 2])).square().sum())
    with pytest.raises(Exception, match="the gradient of weight has the layout torch"):
        jax.block_until_ready(jax.grad(loss)(loss.params))
    with pytest.raises(ValueError, match="no parameters that require a gradient"):
        at.loss(torch.nn.Linear(2, 2).requires_grad_(False), lambda: torch.zeros(()))


def test_failure_third_derivatives():
    model = perceptron()
    loss = at.loss(model, closure_of(model))
    with pytest.raises(ValueError, match="no third derivative here; take what needs two at most"):
        af.solve(af.ModifiedFlow(af.adam(0.001, epsilon=1e-6), order=2), loss, loss.params, 2)


def test_failure_reports_before_the_first_look():
    model = perceptron()
    with pytest.raises(ValueError, match="there are no reports yet"):
        at.Monitor(model, torch.optim.AdamW(model.parameters()), closure_of(model)).to_xarray()
