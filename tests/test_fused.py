"""Layers in one pass: bit for bit what they give in turn, where nobody looks between; cross_entropy with its mean."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

import jitconv
from jitconv import functional as F
from jitconv import ops, shapes, variants

CONVOLUTIONS = (  # input, weight, (stride, padding, dilation, groups)
    ((3, 1, 28, 28), (20, 1, 5, 5), (1, 0, 1, 1)),
    ((2, 4, 9, 12), (6, 2, 3, 2), (1, (1, 2), 1, 2)),
    ((2, 3, 15, 17), (5, 3, 3, 3), (2, 1, 2, 1)),
    ((1, 3, 40, 70), (130, 3, 3, 3), (1, "same", 1, 1)),
    ((3, 2, 9, 11), (150, 2, 3, 3), (1, 1, 1, 1)),
    ((5, 64, 5, 6), (66, 64, 3, 3), (1, 1, 1, 1)),
    ((0, 1, 6, 6), (2, 1, 3, 3), (1, 0, 1, 1)),
)
POOLINGS = ((2,), (2, 2, 1), (3, 2), (2, None, 0, 1, True))
PRODUCTS = (((5, 30), (7, 30)), ((150, 300), (40, 300)), ((200, 9), (300, 9)), ((0, 4), (3, 4)))


def pooled(x: Any, w: Any, b: Any, convolution: tuple[Any, ...], pooling: tuple[Any, ...], variant: str | None) -> Any:
    return F.max_pool2d(F.conv2d(x, w, b, *convolution, variant=variant), *pooling, variant=variant)


def rectified(x: Any, w: Any, b: Any, convolution: tuple[Any, ...], variant: str | None) -> Any:
    return F.relu(F.conv2d(x, w, b, *convolution, variant=variant), variant=variant)


def rectified_product(x: Any, w: Any, b: Any, variant: str | None) -> Any:
    return F.relu(F.linear(x, w, b, variant=variant), variant=variant)


def conv2d_max_pool2d(
    x: Any, w: Any, b: Any, convolution: tuple[Any, ...], pooling: tuple[Any, ...], variant: str = "jit-tiled"
) -> Any:
    geometry = shapes.conv2d(x, w, b, *convolution)
    windows = shapes.pooling((len(x), len(w), *geometry.size), *pooling)
    return ops.conv2d_max_pool2d(variants.get(variant), x, w, b, *geometry, *windows)[0]


def conv2d_relu(x: Any, w: Any, b: Any, convolution: tuple[Any, ...], variant: str = "jit-tiled") -> Any:
    return ops.conv2d_relu(variants.get(variant), x, w, b, *shapes.conv2d(x, w, b, *convolution))


def linear_relu(x: Any, w: Any, b: Any, variant: str = "jit-tiled") -> Any:
    return ops.linear_relu(variants.get(variant), x, w, b)


Layers = Callable[..., Any]
CASES: list[tuple[Layers, Layers, tuple[Any, ...], tuple[Any, ...]]] = [  # in one pass, one by one, shapes, options
    *((conv2d_max_pool2d, pooled, shapes, (how, pooling)) for *shapes, how in CONVOLUTIONS for pooling in POOLINGS),
    *((conv2d_relu, rectified, shapes, (how,)) for *shapes, how in CONVOLUTIONS),
    *((linear_relu, rectified_product, shapes, ()) for shapes in PRODUCTS),
]
SMALL = [
    (conv2d_max_pool2d, pooled, ((2, 1, 5, 5), (2, 1, 2, 2)), ((1, 0, 1, 1), (2,))),
    (conv2d_relu, rectified, ((2, 1, 5, 5), (2, 1, 2, 2)), ((1, 0, 1, 1),)),
    (linear_relu, rectified_product, ((2, 5), (3, 5)), ()),
]


def named(value: Any) -> str:
    return value.__name__ if callable(value) else str(value)


def values_and_gradients(layers: Layers, leaves: list[torch.Tensor], *options: Any) -> list[torch.Tensor]:
    out = layers(*leaves, *options)
    return [out, *torch.autograd.grad(out.square().sum(), leaves)]


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(("one_pass", "one_by_one", "shapes", "options"), CASES, ids=named)
def test_one_pass_gives_what_two_give(
    one_pass: Layers, one_by_one: Layers, shapes: Any, options: tuple[Any, ...], threads: int
) -> None:
    torch.set_num_threads(threads)
    shape, filters = shapes
    leaves = [torch.randn(size).requires_grad_() for size in (shape, filters, filters[:1])]
    ours = values_and_gradients(one_pass, leaves, *options)
    assert all(map(torch.equal, ours, values_and_gradients(one_by_one, leaves, *options, "jit-tiled")))
    with torch.no_grad():  # indices, which only a gradient needs, are not kept
        assert torch.equal(one_pass(*leaves, *options), ours[0])


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize(("one_pass", "one_by_one", "shapes", "options"), SMALL, ids=named)
def test_numbers_that_are_not_finite(
    one_pass: Layers, one_by_one: Layers, shapes: Any, options: tuple[Any, ...], place: int, bad: float
) -> None:
    leaves = [torch.randn(size) for size in (*shapes, shapes[1][:1])]
    leaves[place].view(-1)[1] = bad
    for leaf in leaves:
        leaf.requires_grad_()
    with torch.no_grad():
        without = [one_pass(*leaves, *options) for _ in range(2)]  # the first call of its kind, and a remembered one
    found = [*without, *values_and_gradients(one_pass, leaves, *options)]
    first, *gradients = values_and_gradients(one_by_one, leaves, *options, None)
    expected = [first, first, first, *gradients]
    assert all(map(partial(torch.allclose, rtol=0, atol=0, equal_nan=True), found, expected))


@pytest.mark.parametrize(("one_pass", "one_by_one", "shapes", "options"), SMALL, ids=named)
def test_second_derivatives(one_pass: Layers, one_by_one: Layers, shapes: Any, options: tuple[Any, ...]) -> None:
    leaves = [torch.randn(size, dtype=torch.float64).requires_grad_() for size in (*shapes, shapes[1][:1])]
    call = lambda *a: one_pass(*a, *options)  # noqa: E731
    assert torch.autograd.gradcheck(call, leaves)
    assert torch.autograd.gradgradcheck(call, leaves)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("shape", [(5, 4), (0, 4), (4,), (300, 10), (2, 3, 4, 5), (3, 33, 40, 50)], ids=str)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_a_loss_reduced_in_its_kernel(shape: tuple[int, ...], reduction: str, threads: int) -> None:
    torch.set_num_threads(threads)
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


def test_a_loss_of_a_users_own_is_never_passed_over() -> None:
    def zeros(*args: Any) -> None:
        args[-1][...] = 0

    for op in variants.LOSS_OPS:
        mine = jitconv.register_variant("zero loss", base="jit-tiled", **{op: zeros})
        assert not any(name.startswith("reduced") for name in mine.ops)
    x = torch.randn(2, 3).requires_grad_()
    F.cross_entropy(x, torch.tensor([0, 1]), variant="zero loss").backward()
    assert x.grad is not None
    assert x.grad.count_nonzero() == 0


@pytest.mark.parametrize("layer", ["conv2d", "linear", "relu", "max_pool2d"])
def test_kernels_of_a_users_own_are_never_passed_over(layer: str) -> None:
    base = variants.get("jit-tiled")
    mine = jitconv.register_variant("mine", base="jit-tiled", **{layer: base.ops[layer]})
    assert base.ops.keys() - mine.ops.keys() == {op for op, parts in variants.FUSED_OPS.items() if layer in parts}
