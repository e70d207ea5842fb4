"""jitconv.optim.SGD: torch's own numbers for every argument, and everything else that torch's optimiser does."""

import copy
import io
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from jitconv import optim
from jitconv.variants import compiling
from jitconv.variants.simd import FEATURES

SIZES = ((3, 1, 5), (67,), (), (0, 4))
FUSES = "+fma" in FEATURES or "+neon" in FEATURES  # else torch, which asks the processor itself, may round once less
FAST = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01}

ARGUMENTS = [
    {"lr": 0.013, "momentum": mu, "dampening": tau, "weight_decay": decay, "nesterov": nesterov, "maximize": maximize}
    for mu, tau, decay, nesterov, maximize in itertools.product(
        (0, 0.9), (0, 0.3), (0, 0.01), (False, True), (False, True)
    )
    if not nesterov or (mu and not tau)
]


def parameters(dtype: torch.dtype = torch.float32, *sizes: tuple[int, ...]) -> list[nn.Parameter]:
    chance = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(size, generator=chance).to(dtype)) for size in sizes or SIZES]


def slopes(params: list[nn.Parameter], step: int) -> None:
    chance = torch.Generator().manual_seed(step)
    for param in params:
        param.grad = torch.randn(param.shape, generator=chance).to(param.dtype)


def assert_same(ours: Any, theirs: Any) -> None:
    assert len(ours) == len(theirs)
    for mine, expected in zip(ours, theirs, strict=True):
        tolerance = 0.0 if FUSES else 100 * torch.finfo(expected.dtype).eps
        torch.testing.assert_close(mine, expected, rtol=tolerance, atol=tolerance, equal_nan=True)


def velocities(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [state["momentum_buffer"] for state in optimizer.state.values()]


def both(arguments: dict[str, Any], params: Callable[[], list[nn.Parameter]] = parameters, steps: int = 10) -> None:
    """Take the same steps with both optimisers, and compare all they leave behind."""
    results = []
    for kind in (optim.SGD, torch.optim.SGD):
        mine = params()
        optimizer = kind(mine, **arguments)
        for step in range(steps):
            slopes(mine, step)
            optimizer.step()
        results.append((mine, velocities(optimizer)))
    for ours, theirs in zip(*results, strict=True):
        assert_same(ours, theirs)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of what torch was left to do."""
    left: list[int] = []

    def counted(params: list[Tensor], *args: Any, **kwargs: Any) -> None:
        left.extend(param.numel() for param in params)
        original(params, *args, **kwargs)

    original = optim.sgd
    monkeypatch.setattr(optim, "sgd", counted)
    return left


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("arguments", ARGUMENTS, ids=str)
def test_every_argument_gives_torchs_bits(arguments: dict[str, Any], dtype: torch.dtype, calls: list[int]) -> None:
    both(arguments, lambda: parameters(dtype))
    assert not [size for size in calls if size], "all of it was for loops"


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("momentum", [0, 0.9])
def test_large_parameters_on_all_cores(momentum: float, threads: int) -> None:
    torch.set_num_threads(threads)
    both({**FAST, "momentum": momentum}, lambda: parameters(torch.float32, (optim.LARGE + 5,)), steps=3)


def test_slopes_that_are_not_finite() -> None:
    results = []
    for kind in (optim.SGD, torch.optim.SGD):
        param = nn.Parameter(torch.tensor([1.0, torch.inf, -2.0, torch.nan, 0.0]))
        optimizer = kind([param], lr=0.1, momentum=0.9)
        for slope in ([torch.nan, 1.0, torch.inf, 2.0, -0.0], [1.0, 2.0, 3.0, 4.0, 5.0]):
            param.grad = torch.tensor(slope)
            optimizer.step()
        results.append(param.detach())
    assert_same(*[[result] for result in results])


def test_groups_have_their_own_rates_and_parameters_without_a_gradient_stay(calls: list[int]) -> None:
    def groups(kind: type[torch.optim.SGD]) -> list[nn.Parameter]:
        params = parameters(torch.float32, (4,), (5,), (6,))
        optimizer = kind([{"params": params[:1]}, {"params": params[1:], "lr": 0.5, "momentum": 0.0}], **FAST)
        for step in range(3):
            slopes(params, step)
            params[1].grad = None
            optimizer.step()
        assert params[1] not in optimizer.state
        return params

    assert_same(groups(optim.SGD), groups(torch.optim.SGD))
    assert not calls


@pytest.mark.parametrize("first", [optim.SGD, torch.optim.SGD])
@pytest.mark.parametrize("second", [optim.SGD, torch.optim.SGD])
def test_state_moves_from_one_to_the_other(first: type[torch.optim.SGD], second: type[torch.optim.SGD]) -> None:
    params = parameters()
    optimizer = first(params, **FAST)
    for step in range(6):
        if step == 3:
            file = io.BytesIO()
            torch.save(optimizer.state_dict(), file)
            file.seek(0)
            optimizer = second(params, lr=1.0)
            optimizer.load_state_dict(torch.load(file, weights_only=True))
        slopes(params, step)
        optimizer.step()
    expected = parameters()
    reference = torch.optim.SGD(expected, **FAST)
    for step in range(6):
        slopes(expected, step)
        reference.step()
    assert_same(params, expected)
    ours, theirs = optimizer.state_dict(), reference.state_dict()
    assert ours["param_groups"] == theirs["param_groups"]
    assert ours["state"].keys() == theirs["state"].keys()


def test_copies_go_on_alone() -> None:
    params = parameters()
    optimizer = optim.SGD(params, **FAST)
    slopes(params, 0)
    optimizer.step()
    other = copy.deepcopy(optimizer)
    before = [param.detach().clone() for param in params]
    other.step()
    assert_same([param.detach() for param in params], before)


def test_schedulers_closures_and_hooks() -> None:
    torch.optim.SGD(parameters(), lr=1.0)  # gives torch's own step its hooks, which must not be ours as well
    results = []
    for kind in (optim.SGD, torch.optim.SGD):
        params, heard = parameters(), []
        optimizer = kind(params, **FAST)
        optimizer.register_step_pre_hook(lambda *_, heard=heard: heard.append("before"))
        optimizer.register_step_post_hook(lambda *_, heard=heard: heard.append("after"))
        scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.5, total_steps=6)  # changes momentum too

        def closure(params=params, optimizer=optimizer) -> Tensor:  # type: ignore[no-untyped-def]
            optimizer.zero_grad()
            loss = sum((param**2).sum() for param in params)
            loss.backward()
            return loss

        losses = []
        for _ in range(5):
            losses.append(optimizer.step(closure).detach())
            scheduler.step()
        assert heard == ["before", "after"] * 5
        results.append((params, losses))
    for ours, theirs in zip(*results, strict=True):
        assert_same(ours, theirs)


def test_a_gradient_scaler() -> None:
    results = []
    for kind in (optim.SGD, torch.optim.SGD):
        params = parameters()
        optimizer, scaler = kind(params, **FAST), torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=2)
        for step in range(4):
            optimizer.zero_grad()
            factor = torch.inf if step == 1 else 1.0  # a step that is skipped
            scaler.scale(sum((param**2).sum() for param in params) * factor).backward()
            scaler.step(optimizer)
            scaler.update()
        results.append(params)
    assert_same(*results)


def test_autograd_sees_that_a_parameter_has_changed() -> None:
    for momentum in (0, 0.9):
        param = nn.Parameter(torch.randn(3))
        loss = (param**2).sum()
        param.grad = torch.ones(3)
        before = param._version
        optim.SGD([param], lr=0.1, momentum=momentum).step()
        assert param._version > before
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()


def strided() -> list[nn.Parameter]:
    return [nn.Parameter(param.detach().t()) for param in parameters(torch.float32, (3, 4))]


def half() -> list[nn.Parameter]:
    return parameters(torch.bfloat16)


def complex_numbers() -> list[nn.Parameter]:
    return parameters(torch.complex64)


@pytest.mark.parametrize("params", [strided, half, complex_numbers])
def test_other_parameters_are_left_to_torch(params: Callable[[], list[nn.Parameter]], calls: list[int]) -> None:
    both(FAST, params, steps=3)
    assert calls


@pytest.mark.parametrize(
    "asked", [{"foreach": True}, {"fused": True}, {"differentiable": True}, {"lr": torch.tensor(0.1)}], ids=str
)
def test_what_is_asked_for_is_left_to_torch(asked: dict[str, Any], calls: list[int]) -> None:
    if asked.get("differentiable"):
        results = []
        for kind in (optim.SGD, torch.optim.SGD):
            param = parameters()[1]
            changed = param.clone()
            changed.grad = param * 2
            kind([changed], **FAST, **asked).step()
            (slope,) = torch.autograd.grad(changed.sum(), param)
            results.append([slope])
        assert_same(*results)
    else:
        both({**FAST, **asked}, steps=3)
    assert calls


def test_sparse_gradients_are_left_to_torch(calls: list[int]) -> None:
    results = []
    for kind in (optim.SGD, torch.optim.SGD):
        torch.manual_seed(0)
        table = nn.Embedding(5, 3, sparse=True)
        other = nn.Parameter(torch.randn(4))
        optimizer = kind([table.weight, other], lr=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            (table(torch.tensor([1, 3, 1])).sum() + (other**2).sum()).backward()
            optimizer.step()
        results.append([table.weight, other])
    assert_same(*results)
    assert set(calls) == {15}


def test_under_a_compiler() -> None:
    params, expected = parameters(torch.float32, (4,), (5,)), parameters(torch.float32, (4,), (5,))
    ours, theirs = optim.SGD(params, **FAST), torch.optim.SGD(expected, **FAST)
    step = torch.compile(ours.step, backend="eager")
    for k in range(3):
        slopes(params, k)
        slopes(expected, k)
        step()
        theirs.step()
    assert_same(params, expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"lr": -1.0}, "Invalid learning rate: -1.0"), ({"nesterov": True}, "Nesterov momentum requires a momentum")],
)
def test_what_torch_refuses(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        optim.SGD(parameters(), **arguments)


def test_a_product_and_a_sum_in_one_rounding() -> None:
    kernel = compiling.njit(lambda a, b, c: compiling.multiply_add(a, b, c), cache=False)
    tiny = 2.0**-40
    exact = 2 * tiny + tiny**2 if FUSES else 2 * tiny
    assert kernel(1 + tiny, 1 + tiny, -1.0) == exact
