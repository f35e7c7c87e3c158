"""The PyTorch optimizer against adamflow's own k-Adam, against torch.optim.AdamW, and what bad input is told."""

import copy
import io
import subprocess
import sys

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import pytest

import adamflow as af
from adamflow.optimizers.kadam import STRATEGIES

torch = pytest.importorskip("torch", reason="the extra adamflow[torch] is not installed")
from adamflow.torch import KAdam  # noqa: E402

SHAPES = ((3, 2), (4,), ())


def gradients(steps, seed=0):
    """Random gradients for parameters of `SHAPES`, of slowly changing scale, some of them zero."""
    generator = np.random.default_rng(seed)
    for n in range(steps):
        leaves = [generator.normal(0.3, 1.0, shape) * np.exp(n / 50) for shape in SHAPES]
        leaves[0][0, 0] = 0.0
        yield leaves


def parameters(dtype=torch.float64):
    generator = np.random.default_rng(1)
    return [torch.tensor(generator.normal(size=shape), dtype=dtype, requires_grad=True) for shape in SHAPES]


def follow(optimizer, params, steps=100):
    """Give the parameters the same gradients each time; a copy of them after each iteration."""
    path = []
    for leaves in gradients(steps):
        for param, leaf in zip(params, leaves, strict=True):
            param.grad = torch.as_tensor(leaf).to(param.dtype)
        optimizer.step()
        path.append([param.detach().numpy().copy() for param in params])
    return path


@eqx.filter_jit
def step(optimizer, params, state, gradient, n):
    direction, state = optimizer.update(gradient, state, n)
    return optimizer.apply(params, direction), state


# --- identity --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("k", [1, 2, 3, 4])
@pytest.mark.parametrize("epsilon", [0.0, 1e-3])
def test_identity_kadam_of_both_libraries_agree(k, strategy, epsilon):
    ours = af.kadam(k, 1e-2, beta=0.99, gamma=0.8, epsilon=epsilon, weight_decay=0.3, strategy=strategy)
    params = parameters()
    path = follow(KAdam(params, 1e-2, (0.8, 0.99), epsilon, 0.3, k=k, strategy=strategy), params)
    leaves = [jnp.asarray(param.detach().numpy()) for param in parameters()]
    state = ours.initial_state(leaves)
    for n, (gradient, theirs) in enumerate(zip(gradients(len(path)), path, strict=True)):
        leaves, state = step(ours, leaves, state, [jnp.asarray(leaf) for leaf in gradient], jnp.asarray(n))
        for leaf, their in zip(leaves, theirs, strict=True):
            np.testing.assert_allclose(leaf, their, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"weight_decay": 0.1},
        {"maximize": True},
        {"betas": (0.0, 0.5)},
        {"amsgrad": True, "betas": (0.9, 0.9)},
        {"foreach": True},
        {"foreach": False, "fused": False, "capturable": False, "differentiable": False},
        {"betas": (torch.tensor(0.8, dtype=torch.float64), torch.tensor(0.9, dtype=torch.float64))},
        {"lr": torch.tensor(0.01, dtype=torch.float64)},
    ],
)
def test_identity_one_stage_is_adamw_of_torch(options):
    ours, theirs = parameters(), parameters()
    options = {"weight_decay": 0.0, "lr": 1e-2} | options
    peer = follow(torch.optim.AdamW(theirs, **options), theirs)
    for one, other in zip(follow(KAdam(ours, **options, k=1), ours), peer, strict=True):
        for leaf, their in zip(one, other, strict=True):
            np.testing.assert_allclose(leaf, their, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("amsgrad", [False, True])
@pytest.mark.parametrize("first", ["AdamW", "KAdam"])
def test_identity_a_run_moves_between_adamw_and_one_stage(first, amsgrad):
    options = {"lr": 1e-2, "betas": (0.8, 0.9), "weight_decay": 0.1, "amsgrad": amsgrad}

    def make(name, params, **chosen):
        return torch.optim.AdamW(params, **chosen) if name == "AdamW" else KAdam(params, k=1, **chosen)

    straight, moved = parameters(), parameters()
    expected = follow(torch.optim.AdamW(straight, **options), straight, 20)[-1]
    old, new = make(first, moved, **options), make({"AdamW": "KAdam", "KAdam": "AdamW"}[first], moved, lr=1.0)
    for n, leaves in enumerate(gradients(20)):
        for param, leaf in zip(moved, leaves, strict=True):
            param.grad = torch.as_tensor(leaf)
        if n == 10:
            new.load_state_dict(old.state_dict())
        (old if n < 10 else new).step()
    for param, leaf in zip(moved, expected, strict=True):
        np.testing.assert_allclose(param.detach().numpy(), leaf, rtol=1e-12, atol=1e-14)
    assert new.param_groups[0]["lr"] == 1e-2


def test_identity_adamw_of_a_fused_run_and_adam_without_decay_are_taken():
    params = parameters()
    fused = torch.optim.AdamW(params, fused=True, weight_decay=0.0)
    follow(fused, params, 2)
    one = KAdam(params, k=1)
    one.load_state_dict(fused.state_dict())
    assert one.param_groups[0]["fused"] is None
    adam = torch.optim.Adam(params)
    follow(adam, params, 2)
    one.load_state_dict(adam.state_dict())
    follow(one, params, 1)
    assert one.state[params[0]]["step"] == 3


def test_formula_amsgrad_divides_by_the_largest_second_moment_in_each_stage():
    # A decaying v: without the maximum the first update would be smaller than what follows, with it larger.
    param = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    optimizer = KAdam([param], 1.0, (0.0, 0.5), 0.0, k=2, strategy="naive", amsgrad=True)
    first = second = 0.0
    largest, moved = [0.0, 0.0], 0.0
    for n, gradient in enumerate([4.0, 1.0, 0.5]):
        param.grad = torch.tensor([gradient], dtype=torch.float64)
        optimizer.step()
        first = 0.5 * first + 0.5 * gradient**2
        largest[0] = max(largest[0], first)
        signal = gradient / np.sqrt(largest[0] / (1 - 0.5 ** (n + 1)))
        second = 0.5 * second + 0.5 * signal**2
        largest[1] = max(largest[1], second)
        moved -= signal / np.sqrt(largest[1] / (1 - 0.5 ** (n + 1)))
    np.testing.assert_allclose(param.item(), moved, rtol=1e-13)


def test_identity_saved_state_continues_the_same_run():
    straight, split = parameters(), parameters()
    expected = follow(KAdam(straight, 1e-2, k=3), straight, 20)
    first = KAdam(split, 1e-2, k=3)
    follow(first, split, 10)
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    second = KAdam(split, 1.0, k=3)
    second.load_state_dict(torch.load(file))
    for n, leaves in enumerate(gradients(20)):
        if n >= 10:
            for param, leaf in zip(split, leaves, strict=True):
                param.grad = torch.as_tensor(leaf)
            second.step()
    for param, leaf in zip(split, expected[-1], strict=True):
        np.testing.assert_array_equal(param.detach().numpy(), leaf)


def test_identity_groups_have_numbers_and_counts_of_their_own():
    params, alone = parameters(), [parameters() for _ in SHAPES]
    groups = [{"params": [params[0]], "lr": 1e-2, "k": 1}, {"params": params[1:2], "strategy": "naive"}]
    optimizer = KAdam(groups, 1e-3, k=2)
    optimizer.add_param_group({"params": [params[2]], "weight_decay": 0.5})
    options = [{"lr": 1e-2, "k": 1}, {"strategy": "naive"}, {"weight_decay": 0.5}]
    others = [KAdam([alone[i][i]], **({"lr": 1e-3, "k": 2} | options[i])) for i in range(3)]
    for n, leaves in enumerate(gradients(8)):
        for i, leaf in enumerate(leaves):
            # The second parameter misses every other gradient: it neither moves nor counts then.
            gradient = None if i == 1 and n % 2 else torch.as_tensor(leaf)
            params[i].grad, alone[i][i].grad = gradient, gradient
        for method in (optimizer, *others):
            method.step()
    assert [optimizer.state[param]["step"].item() for param in params] == [8, 4, 8]
    for i, param in enumerate(params):
        np.testing.assert_array_equal(param.detach().numpy(), alone[i][i].detach().numpy())


def test_identity_closure_scheduler_and_single_precision():
    param = torch.nn.Parameter(torch.tensor([2.0, -1.0], dtype=torch.float32))
    other = torch.nn.Parameter(torch.ones(3, dtype=torch.float64))
    optimizer = KAdam([param, other], lr=0.1, k=2)
    scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=0.5, total_iters=10)

    def closure():
        optimizer.zero_grad()
        loss = param.square().sum() + other.square().sum()
        loss.backward()
        return loss

    losses = []
    for _ in range(12):
        losses.append(optimizer.step(closure).item())
        scheduler.step()
    assert losses[0] == pytest.approx(8.0)
    assert losses[-1] < 2.0
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.1)
    assert (param.dtype, other.dtype) == (torch.float32, torch.float64)
    assert copy.deepcopy(optimizer).param_groups[0]["k"] == 2


def test_identity_importing_adamflow_imports_no_torch():
    program = "import sys, adamflow, adamflow.plotting; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)


# --- failure ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"lr": -1e-3}, r"lr must lie in \[0, inf\), got -0.001"),
        ({"betas": (1.0, 0.999)}, r"betas\[0\] must lie in \[0, 1\), got 1.0; betas holds the decays of the first"),
        ({"betas": (0.9, 0.0)}, r"betas\[1\] must lie in \(0, 1\), got 0.0"),
        ({"betas": (0.9,)}, r"betas must be a pair, .*, got \(0.9,\)"),
        ({"eps": -1.0}, r"eps must lie in \[0, inf\)"),
        ({"weight_decay": float("nan")}, "weight_decay must lie in"),
        ({"k": 0}, "k must be a whole number of at least 1, got 0"),
        ({"strategy": "best"}, "strategy must be one of 'naive', .*, got 'best'"),
        ({"lr": "0.1"}, "lr must be one real number, got '0.1'"),
        ({"lr": torch.ones(2)}, r"lr must be one real number, got a tensor of shape \(2,\)"),
        ({"betas": (torch.tensor(1.5), 0.9)}, r"betas\[0\] must lie in \[0, 1\), got 1.5"),
        ({"betas": 0.9}, "betas must be a pair, .*, got 0.9"),
        ({"eps": None}, "eps must be one real number, got None"),
        ({"amsgrad": "yes"}, "amsgrad must be True or False, got 'yes'"),
        ({"foreach": 2}, "foreach must be True, False or None, got 2"),
        ({"fused": True}, "fused must be False, got True: there is no fused kernel of k stages"),
        ({"capturable": True}, "capturable must be False, got True: .*CUDA graph"),
        ({"differentiable": True}, "differentiable must be False, got True: .*in place"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_failure_numbers_out_of_range_in_any_group(options, words):
    first, second, _ = parameters()
    with pytest.raises(ValueError, match=words):
        KAdam([first], **options)
    with pytest.raises(ValueError, match=words):
        KAdam([{"params": [first]}, {"params": [second], **options}])


def test_failure_sparse_gradients_and_complex_parameters():
    embedding = torch.nn.Embedding(4, 2, sparse=True)
    embedding(torch.tensor([1])).sum().backward()
    with pytest.raises(RuntimeError, match=r"dense gradients, got one of layout torch.sparse_coo .* sparse=False"):
        KAdam(embedding.parameters()).step()
    param = torch.nn.Parameter(torch.ones(2, dtype=torch.complex64))
    param.abs().sum().backward()
    with pytest.raises(RuntimeError, match=r"real parameters, got torch\.complex64"):
        KAdam([param]).step()


@pytest.mark.parametrize(("before", "after"), [({"k": 1}, {"k": 2}), ({"k": 3}, {"k": 2}), ({}, {"amsgrad": True})])
def test_failure_stages_that_change_within_a_run(before, after):
    params = parameters()
    optimizer = KAdam(params, **before)
    follow(optimizer, params, 1)
    optimizer.param_groups[0].update(after)
    with pytest.raises(
        RuntimeError, match=r"a group has k=\d and amsgrad=.*, but the state .* holds step, .*new KAdam"
    ):
        follow(optimizer, params, 1)


@pytest.mark.parametrize(
    ("make", "k", "words"),
    [
        (lambda params: torch.optim.AdamW(params), 2, "the moments of one stage, but this KAdam has k=2; give it k=1"),
        (lambda params: torch.optim.Adam(params, weight_decay=0.1), 1, "decoupled_weight_decay must be True"),
        (lambda params: torch.optim.SGD(params, momentum=0.9), 1, "state_dict must be of KAdam or AdamW, .* no betas"),
        (
            lambda params: torch.optim.Adamax(params),
            1,
            "must hold exp_avg, exp_avg_sq, step .*got .*exp_inf",
        ),
        (lambda params: torch.optim.NAdam(params), 1, "state_dict must hold .*got .*mu_product"),
    ],
)
def test_failure_states_of_other_optimizers(make, k, words):
    params = parameters()
    other = make(params)
    follow(other, params, 1)
    with pytest.raises(ValueError, match=words):
        KAdam(params, k=k).load_state_dict(other.state_dict())
    with pytest.raises(ValueError, match="state_dict must be what state_dict"):
        KAdam(params, k=k).load_state_dict({})
