"""A convolution and what is computed with it, band by band: the same bits as one by one, and when it is done."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import jitconv
from jitconv.plan import layout
from jitconv.plan.run import Plan
from jitconv.variants.tiled import banded

CASES: dict[str, tuple[Any, tuple[int, ...]]] = {
    "depthwise": (lambda: [nn.Conv2d(5, 48, 1), nn.Conv2d(48, 48, 3, padding=1, groups=48)], (1, 5, 30, 29)),
    "depthwise, stride 2": (
        lambda: [nn.Conv2d(20, 32, 1), nn.ReLU6(), nn.Conv2d(32, 32, 3, stride=2, padding=1, groups=32), nn.ReLU()],
        (2, 20, 23, 56),
    ),
    "depthwise, large filters and dilation": (
        lambda: [nn.Conv2d(16, 80, 3), nn.ReLU(), nn.Conv2d(80, 80, (5, 3), padding=4, dilation=(2, 3), groups=80)],
        (2, 16, 19, 21),
    ),
    "of a picture": (
        lambda: [nn.Conv2d(3, 32, 3, stride=2, padding=1), nn.Conv2d(32, 32, 3, padding=1, groups=32, bias=False)],
        (3, 3, 40, 57),
    ),
    "max_pool2d": (lambda: [nn.Conv2d(5, 48, 3, padding=1), nn.ReLU(), nn.MaxPool2d(3, 2)], (1, 5, 30, 29)),
    "max_pool2d, over the edge": (
        lambda: [nn.Conv2d(3, 20, 7, stride=2), nn.MaxPool2d((3, 4), (2, 3), padding=1, ceil_mode=True)],
        (3, 3, 40, 57),
    ),
    "max_pool2d, no whole registers": (lambda: [nn.Conv2d(16, 33, 3), nn.MaxPool2d(2)], (2, 16, 19, 22)),
    "max_pool2d, a window that is the image": (lambda: [nn.Conv2d(4, 80, 1), nn.MaxPool2d((9, 8))], (2, 4, 9, 17)),
    "of one line": (lambda: [nn.Conv2d(5, 32, 1), nn.Conv2d(32, 32, (1, 3), padding=1, groups=32)], (2, 5, 1, 40)),
}


@pytest.fixture(params=[1, 6 << 10, 1 << 20], ids=lambda most: f"{most >> 10} KiB")
def bands(request: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small images too are computed band by band: of one line, of some, and of all lines."""
    monkeypatch.setattr(layout, "SECOND_LEVEL_CACHE", 0)
    monkeypatch.setattr(banded, "BETWEEN", request.param)


def network(*layers: nn.Module) -> nn.Module:
    """The layers, and one more that reads their result as it lies between layers."""
    return nn.Sequential(*layers, nn.AvgPool2d((1, 2))).eval()


def one_by_one(model: nn.Module, x: Tensor, monkeypatch: pytest.MonkeyPatch) -> Plan:
    with monkeypatch.context() as change:
        change.setattr(layout, "chained", lambda blocked: {})
        return jitconv.plan(model, x)


def names(plan: Plan) -> list[str]:
    return [step.name for step in plan.program.steps]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("name", CASES)
def test_the_numbers_are_those_of_one_after_the_other(
    name: str, threads: int, dtype: torch.dtype, bands: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    torch.set_num_threads(threads)
    layers, size = CASES[name]
    model, x = network(*layers()).to(dtype), torch.randn(size, dtype=dtype)
    plan, apart = jitconv.plan(model, x), one_by_one(model, x, monkeypatch)
    assert [each for each in names(plan) if "+" in each]
    assert not [each for each in names(apart) if "+" in each]
    assert torch.equal(plan(x), apart(x))
    with torch.no_grad():
        torch.testing.assert_close(plan(x), model(x), rtol=1e-5, atol=1e-5)
        x[0, 1, x.shape[2] // 2, 4], x[-1, 0, -1, -1] = float("nan"), float("inf")
        assert torch.equal(plan(x).isnan(), model(x).isnan())
        assert torch.equal(plan(x).isinf(), model(x).isinf())


def test_changed_weights_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "SECOND_LEVEL_CACHE", 0)
    model, x = network(nn.Conv2d(4, 32, 1), nn.Conv2d(32, 32, 3, groups=32)), torch.randn(1, 4, 9, 9)
    plan = jitconv.plan(model, x)
    plan(x)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2)
        torch.testing.assert_close(plan(x), model(x), rtol=1e-5, atol=1e-5)


class Read(nn.Module):
    """A convolution and a depthwise one, with something between or around them."""

    def __init__(self, forward: Any, channels: int = 32) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(4, channels, 1), nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
        self.c, self.how = nn.Conv2d(channels, 16, 1), forward

    def forward(self, x: Tensor) -> Any:
        return self.how(self, x)


@pytest.mark.parametrize(
    "model",
    [
        Read(lambda m, x: (lambda y: F.avg_pool2d(y + m.b(y), 2))(m.a(x))),
        Read(lambda m, x: (lambda y: (y, F.avg_pool2d(m.b(y), 2)))(m.a(x))),
        Read(lambda m, x: F.avg_pool2d(m.b(F.hardswish(m.a(x))), 2)),
        Read(lambda m, x: F.avg_pool2d(F.silu(m.b(m.a(x))), 2)),
        Read(lambda m, x: F.avg_pool2d(m.b(m.a(x)), 2), channels=33),
        Read(lambda m, x: F.avg_pool2d(m.a(x), 2)),
        Read(lambda m, x: F.avg_pool2d(F.max_pool2d(m.a(x), 2, dilation=2), 2)),
        Read(lambda m, x: F.avg_pool2d(F.max_pool2d(m.c(F.relu(m.a(x))), 2), 2), channels=2000),
        Read(lambda m, x: (lambda y: F.avg_pool2d(F.max_pool2d(y, 1) + y, 2))(m.a(x))),
    ],
    ids=[
        "residual",
        "result",
        "smooth between",
        "smooth after",
        "no whole registers",
        "other pooling",
        "pooling with dilation",
        "pooling, many weights",
        "pooling, residual",
    ],
)
def test_what_cannot_be_is_computed_one_after_the_other(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "SECOND_LEVEL_CACHE", 0)
    x = torch.randn(1, 4, 9, 11)
    plan = jitconv.plan(model.eval(), x)
    assert not [each for each in names(plan) if "+" in each]
    with torch.no_grad():
        torch.testing.assert_close(plan(x), model(x), rtol=1e-5, atol=1e-5)


def test_small_images_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    model = network(nn.Conv2d(4, 32, 1), nn.Conv2d(32, 32, 3, groups=32))
    for size, count in ((20, 0), (120, 1)):
        plan = jitconv.plan(model, torch.randn(1, 4, size, size))
        assert len([each for each in names(plan) if "+" in each]) == count
