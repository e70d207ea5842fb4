"""Ops in one pass: conv2d and the max_pool2d after it, bit for bit what the two give; cross_entropy with its mean."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import jitconv
from jitconv import functional as F
from jitconv import variants

CONVOLUTIONS = (  # input, weight, (stride, padding, dilation, groups)
    ((3, 1, 28, 28), (20, 1, 5, 5), (1, 0, 1, 1)),
    ((2, 4, 9, 12), (6, 2, 3, 2), (1, (1, 2), 1, 2)),
    ((2, 3, 15, 17), (5, 3, 3, 3), (2, 1, 2, 1)),
    ((1, 3, 40, 70), (130, 3, 3, 3), (1, "same", 1, 1)),
    ((0, 1, 6, 6), (2, 1, 3, 3), (1, 0, 1, 1)),
    ((5, 4, 4), (2, 5, 2, 2), (1, 0, 1, 1)),
)
POOLINGS = ((2,), (2, 2, 1), (3, 2), (2, None, 0, 1, True))
ARRAYS = pytest.mark.parametrize("arrays", CONVOLUTIONS, ids=str)


def in_turn(x: Any, w: Any, b: Any, convolution: tuple[Any, ...], pooling: tuple[Any, ...], variant: str) -> Any:
    return F.max_pool2d(F.conv2d(x, w, b, *convolution, variant=variant), *pooling, variant=variant)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("pooling", POOLINGS, ids=str)
@ARRAYS
def test_one_pass_gives_what_two_give(arrays: Any, pooling: Any, threads: int) -> None:
    shape, filters, convolution = arrays
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        leaves = [torch.randn(size).requires_grad_() for size in (shape, filters, filters[:1])]
        found, expected = (
            (out := call(*leaves, convolution, pooling, variant="jit-tiled"),
             *torch.autograd.grad(out.square().sum(), leaves))
            for call in (F.conv2d_max_pool2d, in_turn)
        )  # fmt: skip
        assert all(map(torch.equal, found, expected))
    finally:
        torch.set_num_threads(before)


def test_every_variant_can_do_it(variant: str) -> None:
    args = (torch.randn(2, 1, 5, 5), torch.randn(2, 1, 2, 2), None, (1, 0, 1, 1), (2,))
    assert torch.equal(F.conv2d_max_pool2d(*args, variant=variant), in_turn(*args, variant=variant))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite(bad: float) -> None:
    for place in (0, 1):
        arrays = [np.random.default_rng(0).standard_normal(size) for size in ((2, 3, 8, 8), (4, 3, 3, 3), (4,))]
        arrays[place].flat[7] = bad
        args = (*arrays, (1, 1, 1, 1), (2,))
        np.testing.assert_array_equal(F.conv2d_max_pool2d(*args), in_turn(*args, variant="jit-tiled"))


def test_second_derivatives() -> None:
    leaves = [torch.randn(size, dtype=torch.float64).requires_grad_() for size in ((1, 2, 5, 5), (2, 2, 2, 2), (2,))]
    call = lambda *a: F.conv2d_max_pool2d(*a, (1, 0, 1, 1), (2,))  # noqa: E731
    assert torch.autograd.gradcheck(call, leaves)
    assert torch.autograd.gradgradcheck(call, leaves)


def sequence() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.MaxPool2d(2), nn.ReLU(), nn.Flatten())


def calls(monkeypatch: pytest.MonkeyPatch, model: nn.Module) -> int:
    """How often the model's forward takes the one pass."""
    count = 0
    one_pass = F.conv2d_max_pool2d

    def counted(*args: Any, **options: Any) -> Any:
        nonlocal count
        count += 1
        return one_pass(*args, **options)

    with monkeypatch.context() as patched:
        patched.setattr(F, "conv2d_max_pool2d", counted)
        model(torch.randn(2, 1, 8, 8))
    return count


def test_modules_are_fused_where_nobody_looks_between(monkeypatch: pytest.MonkeyPatch) -> None:
    model = jitconv.nn.convert(sequence())
    x = torch.randn(2, 1, 8, 8)
    torch.testing.assert_close(model(x), jitconv.nn.convert(model, "torch")(x))
    assert isinstance(model, nn.Sequential)
    assert [name for name, _ in model.named_modules()] == [name for name, _ in sequence().named_modules()]
    assert calls(monkeypatch, model) == 1
    seen: list[torch.Size] = []
    hook = model[0].register_forward_hook(lambda module, args, out: seen.append(out.shape))
    assert calls(monkeypatch, model) == 0
    assert seen == [torch.Size([2, 4, 6, 6])]
    hook.remove()
    assert calls(monkeypatch, model) == 1
    model[1].variant = "jit"
    assert calls(monkeypatch, model) == 0


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("shape", [(5, 4), (0, 4), (4,), (300, 10), (2, 3, 4, 5), (3, 33, 40, 50)], ids=str)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_a_loss_reduced_in_its_kernel(shape: tuple[int, ...], reduction: str, threads: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        classes = shape[0] if len(shape) == 1 else shape[1]
        x, weight = torch.randn(shape).requires_grad_(), torch.rand(classes)
        target = torch.randint(classes, shape[:1][: len(shape) - 1] + shape[2:])
        options = {"ignore_index": 1, "label_smoothing": 0.1, "reduction": reduction}
        for x_, w in ((x, None), (x, weight), (x.detach().double().requires_grad_(), weight.double())):
            for _ in range(2):
                found, expected = (
                    (loss := layer(x_, target, w, **options), *torch.autograd.grad(3 * loss, x_))
                    for layer in (F.cross_entropy, nn.functional.cross_entropy)
                )
                torch.testing.assert_close(found, expected, equal_nan=True)
    finally:
        torch.set_num_threads(before)


def test_a_mean_of_many_losses_is_as_good_as_one_of_few() -> None:
    x, target = torch.randn(1, 2, 1000, 1000), torch.randint(2, (1, 1000, 1000))
    exact = nn.functional.cross_entropy(x.double(), target)
    assert abs(F.cross_entropy(x, target).double() - exact) < 2**-23 * exact


def test_second_derivatives_of_a_reduced_loss() -> None:
    x, weight = torch.randn(4, 3, dtype=torch.float64).requires_grad_(), torch.rand(3, dtype=torch.float64)
    for reduction in ("mean", "sum"):
        loss = lambda x: F.cross_entropy(x, torch.tensor([0, 2, -100, 1]), weight, reduction=reduction)  # noqa: B023, E731
        assert torch.autograd.gradcheck(loss, x)
        assert torch.autograd.gradgradcheck(loss, x)


def test_kernels_of_a_users_own_are_never_passed_over() -> None:
    def zeros(*args: Any) -> None:
        args[-1][...] = 0

    mine = jitconv.register_variant("zero conv", base="jit-tiled", conv2d=zeros)
    assert "conv2d_max_pool2d" not in mine.ops
    assert "conv2d_max_pool2d" in variants.get("jit-tiled").ops
    assert jitconv.nn.convert(sequence(), "zero conv")(torch.randn(2, 1, 8, 8)).count_nonzero() == 0
    for op in variants.LOSS_OPS:
        mine = jitconv.register_variant("zero loss", base="jit-tiled", **{op: zeros})
        assert not any(name.startswith("reduced") for name in mine.ops)
    x = torch.randn(2, 3).requires_grad_()
    F.cross_entropy(x, torch.tensor([0, 1]), variant="zero loss").backward()
    assert x.grad is not None
    assert x.grad.count_nonzero() == 0
