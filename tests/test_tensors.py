"""Tensors of every kind: half precision, torch.autocast, memory formats; what torch's rules say, ours do."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch.nn import functional as torch_functional

import jitconv
from jitconv import functional as F

HALVES = (torch.bfloat16, torch.float16)
TARGET = torch.tensor([0, 2])
CALLS: dict[str, tuple[Callable[..., Any], tuple[tuple[int, ...], ...]]] = {
    "conv2d": (lambda M, x, w, b: M.conv2d(x, w, b, padding=1), ((2, 3, 5, 4), (4, 3, 3, 3), (4,))),
    "max_pool2d": (lambda M, x: M.max_pool2d(x, 2), ((2, 3, 5, 4),)),
    "flatten": (lambda M, x: getattr(M, "flatten", torch.flatten)(x, 1), ((2, 3, 5, 4),)),
    "linear": (lambda M, x, w, b: M.linear(x, w, b), ((2, 5), (4, 5), (4,))),
    "relu": (lambda M, x: M.relu(x), ((3, 4),)),
    "softmax": (lambda M, x: M.softmax(x, 1), ((2, 3),)),
    "log_softmax": (lambda M, x: M.log_softmax(x, 1), ((2, 3),)),
    "cross_entropy": (lambda M, x: M.cross_entropy(x, TARGET), ((2, 3),)),
}
FAMILY = ("softmax", "log_softmax", "cross_entropy")


class Ours:
    """jitconv.functional through one variant, as torch.nn.functional is called."""

    def __init__(self, variant: str) -> None:
        self.variant = variant

    def __getattr__(self, layer: str) -> Callable[..., Any]:
        return lambda *args, **options: getattr(F, layer)(*args, **options, variant=self.variant)


def value_and_gradients(call: Callable[..., torch.Tensor], args: list[torch.Tensor]) -> list[torch.Tensor]:
    args = [arg.detach().requires_grad_() for arg in args]
    out = call(*args)
    return [out, *torch.autograd.grad(out.float().square().sum(), args)]


def assert_near(found: Sequence[torch.Tensor], exact: Sequence[torch.Tensor]) -> None:
    """Within a few roundings of bfloat16 of the largest element."""
    for f, e in zip(found, exact, strict=True):
        torch.testing.assert_close(f.float(), e.float(), rtol=0, atol=0.03 * float(e.abs().max()))


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("layer", CALLS)
def test_half_precision_is_computed_in_float32_and_cast_back(layer: str, dtype: torch.dtype, variant: str) -> None:
    function, shapes = CALLS[layer]
    args = [torch.randn(shape).to(dtype) for shape in shapes]
    found = value_and_gradients(lambda *a: function(Ours(variant), *a), args)
    exact = value_and_gradients(lambda *a: function(torch_functional, *a), [a.float() for a in args])
    assert {f.dtype for f in found} == {dtype}
    assert_near(found, exact)
    if variant != "torch":
        assert torch.equal(found[0], function(Ours(variant), *(a.float() for a in args)).to(dtype))


@pytest.mark.parametrize("layer", CALLS)
def test_autocast_lets_precisions_meet(layer: str, variant: str) -> None:
    function, shapes = CALLS[layer]
    args = [torch.randn(shape) for shape in shapes]
    args[0] = args[0].bfloat16()
    exact = value_and_gradients(lambda *a: function(torch_functional, *a), [a.float() for a in args])
    with torch.autocast("cpu", torch.bfloat16):
        found = value_and_gradients(lambda *a: function(Ours(variant), *a), args)
    assert [f.dtype for f in found[1:]] == [a.dtype for a in args]
    if variant != "torch":
        assert found[0].dtype == (torch.float32 if layer in FAMILY else torch.bfloat16)
    assert_near(found, exact)


def test_without_autocast_precisions_must_agree() -> None:
    x, w = torch.randn(2, 3), torch.randn(4, 3)
    for a, b in ((x.bfloat16(), w), (x, w.half()), (x.half(), w.bfloat16()), (x.double(), w)):
        with pytest.raises(TypeError, match="weight must have input's dtype"):
            F.linear(a, b)
    with torch.autocast("cpu"), pytest.raises(TypeError, match="weight must have input's dtype"):
        F.linear(x.double(), w)
    with torch.autocast("cpu"):
        assert F.linear(x, w).dtype == torch.float32, "what is float32 stays so"
        assert F.linear(x, w.half()).dtype == torch.float32


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_a_network_trains_in_half_precision(dtype: torch.dtype) -> None:
    images, labels = torch.rand(4, 1, 28, 28), torch.arange(4)
    model = jitconv.SimpleConvNet()
    exact = torch.autograd.grad(F.cross_entropy(model(images), labels), list(model.parameters()))
    with torch.autocast("cpu", dtype):
        hidden = model.conv(images.to(dtype))
        assert hidden.dtype == dtype
        found = torch.autograd.grad(F.cross_entropy(model(images.to(dtype)), labels), list(model.parameters()))
    for f, e in zip(found, exact, strict=True):  # rounding moves the maximum of some windows, and their gradients
        assert torch.cosine_similarity(f.flatten(), e.flatten(), 0) > 0.98
    narrow = model.to(dtype)
    loss = F.cross_entropy(narrow(images.to(dtype)), labels)
    loss.backward()
    assert loss.dtype == narrow.conv.weight.grad.dtype == dtype
    compiled = torch.compile(narrow, fullgraph=True, dynamic=True, backend="aot_eager")
    torch.testing.assert_close(compiled(images.to(dtype)), narrow(images.to(dtype)))


def test_scaled_losses_do_not_overflow_under_autocast() -> None:
    logits = torch.randn(2, 3).half().requires_grad_()
    with torch.autocast("cpu", torch.float16):
        loss = F.cross_entropy(logits, TARGET)
    (loss * 2.0**17).backward()
    assert loss.dtype == torch.float32
    assert (logits.grad / 2.0**17).isfinite().all()


def layouts(x: torch.Tensor) -> dict[str, torch.Tensor]:
    wide = x.to(memory_format=torch.channels_last).repeat_interleave(2, 3)
    return {
        "contiguous": x,
        "channels_last": x.to(memory_format=torch.channels_last),
        "channels_last, every other column": wide[..., ::2],
        "expanded": x[:1].expand_as(x),
        "batch 0, channels_last": x[:0].to(memory_format=torch.channels_last),
        "one channel": x[:, :1],
    }


@pytest.mark.parametrize("layout", layouts(torch.zeros(2, 3, 6, 4)))
@pytest.mark.parametrize("format", [torch.contiguous_format, torch.channels_last], ids=str)
def test_results_have_torchs_memory_format(layout: str, format: torch.memory_format, variant: str) -> None:
    x = layouts(torch.randn(2, 3, 6, 4))[layout]
    w = torch.randn(4, x.shape[1], 3, 3).to(memory_format=format)
    calls = [
        lambda M: M.conv2d(x, w),
        lambda M: M.max_pool2d(x, 2),
        lambda M: M.max_pool2d(x, 2, return_indices=True)[1],
        *([] if layout == "expanded" else [lambda M: M.relu(x)]),  # torch's expands nothing that it computes
    ]
    for call in calls:
        found, expected = call(Ours(variant)), call(torch_functional)
        torch.testing.assert_close(found, expected, check_stride=found.numel() > 0)


def test_a_network_in_channels_last(variant: str) -> None:
    plain = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.MaxPool2d(2), torch.nn.Conv2d(4, 2, 2, stride=2)
    ).to(memory_format=torch.channels_last)
    x = torch.randn(2, 3, 8, 8).to(memory_format=torch.channels_last)
    grads = []
    for model in (plain, jitconv.nn.convert(plain, variant)):
        out = model(x)
        assert out.is_contiguous(memory_format=torch.channels_last)
        grads.append((out, *torch.autograd.grad(out.square().sum(), list(model.parameters()))))
    torch.testing.assert_close(grads[1], grads[0], rtol=1e-4, atol=1e-5)


def test_a_model_moves_between_dtypes() -> None:
    model, x = jitconv.SimpleConvNet(), torch.rand(2, 1, 28, 28)
    expected = model(x)
    for dtype in (torch.float64, torch.bfloat16, torch.float32):
        assert model.to(dtype)(x.to(dtype)).dtype == dtype
    torch.testing.assert_close(model(x), expected, rtol=0.03, atol=0.03)
