"""Layers in one pass: bit for bit what they give in turn, where nobody looks between; cross_entropy with its mean."""

import math
from collections.abc import Callable
from functools import partial
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
    ((3, 2, 9, 11), (150, 2, 3, 3), (1, 1, 1, 1)),
    ((5, 64, 5, 6), (66, 64, 3, 3), (1, 1, 1, 1)),
    ((0, 1, 6, 6), (2, 1, 3, 3), (1, 0, 1, 1)),
    ((5, 4, 4), (2, 5, 2, 2), (1, 0, 1, 1)),
)
POOLINGS = ((2,), (2, 2, 1), (3, 2), (2, None, 0, 1, True))
PRODUCTS = (((5, 30), (7, 30)), ((2, 3, 8), (1, 8)), ((150, 300), (40, 300)), ((200, 9), (300, 9)), ((0, 4), (3, 4)))


def pooled(x: Any, w: Any, b: Any, convolution: tuple[Any, ...], pooling: tuple[Any, ...], variant: str | None) -> Any:
    return F.max_pool2d(F.conv2d(x, w, b, *convolution, variant=variant), *pooling, variant=variant)


def rectified(x: Any, w: Any, b: Any, convolution: tuple[Any, ...], variant: str | None) -> Any:
    return F.relu(F.conv2d(x, w, b, *convolution, variant=variant), variant=variant)


def rectified_and_pooled(
    x: Any, w: Any, b: Any, convolution: tuple[Any, ...], pooling: tuple[Any, ...], variant: str | None
) -> Any:
    return F.max_pool2d(rectified(x, w, b, convolution, variant), *pooling, variant=variant)


def rectified_product(x: Any, w: Any, b: Any, variant: str | None) -> Any:
    return F.relu(F.linear(x, w, b, variant=variant), variant=variant)


Layers = Callable[..., Any]
CASES: list[tuple[Layers, Layers, tuple[Any, ...], tuple[Any, ...]]] = [  # in one pass, in turn, shapes, options
    *((F.conv2d_max_pool2d, pooled, shapes, (how, pooling)) for *shapes, how in CONVOLUTIONS for pooling in POOLINGS),
    *((F.conv2d_relu, rectified, shapes, (how,)) for *shapes, how in CONVOLUTIONS),
    *(
        (F.conv2d_relu_max_pool2d, rectified_and_pooled, shapes, (how, pooling))
        for *shapes, how in CONVOLUTIONS
        for pooling in POOLINGS
    ),
    *((F.linear_relu, rectified_product, shapes, ()) for shapes in PRODUCTS),
]
SMALL = [
    (F.conv2d_max_pool2d, pooled, ((2, 1, 5, 5), (2, 1, 2, 2)), ((1, 0, 1, 1), (2,))),
    (F.conv2d_relu, rectified, ((2, 1, 5, 5), (2, 1, 2, 2)), ((1, 0, 1, 1),)),
    (F.conv2d_relu_max_pool2d, rectified_and_pooled, ((2, 1, 5, 5), (2, 1, 2, 2)), ((1, 0, 1, 1), (2,))),
    (F.linear_relu, rectified_product, ((2, 5), (3, 5)), ()),
]


def named(value: Any) -> str:
    return value.__name__ if callable(value) else str(value)


def values_and_gradients(layers: Layers, leaves: list[torch.Tensor], *options: Any) -> list[torch.Tensor]:
    out = layers(*leaves, *options)
    return [out, *torch.autograd.grad(out.square().sum(), leaves)]


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(("one_pass", "in_turn", "shapes", "options"), CASES, ids=named)
def test_one_pass_gives_what_two_give(
    one_pass: Layers, in_turn: Layers, shapes: Any, options: tuple[Any, ...], threads: int
) -> None:
    torch.set_num_threads(threads)
    shape, filters = shapes
    leaves = [torch.randn(size).requires_grad_() for size in (shape, filters, filters[:1])]
    ours = values_and_gradients(one_pass, leaves, *options)
    assert all(map(torch.equal, ours, values_and_gradients(in_turn, leaves, *options, "jit-tiled")))
    with torch.no_grad():  # indices, which only a gradient needs, are not kept
        assert torch.equal(one_pass(*leaves, *options), ours[0])


@pytest.mark.parametrize(("one_pass", "in_turn", "shapes", "options"), SMALL, ids=named)
def test_every_variant_can_do_it(
    one_pass: Layers, in_turn: Layers, shapes: Any, options: tuple[Any, ...], variant: str
) -> None:
    leaves = [torch.randn(size).requires_grad_() for size in (*shapes, shapes[1][:1])]
    for dtype in (torch.float32, torch.bfloat16):
        args = [leaf.to(dtype) for leaf in leaves]
        assert torch.equal(one_pass(*args, *options, variant=variant), in_turn(*args, *options, variant))
    arrays = [leaf.detach().numpy() for leaf in leaves[:2]]
    ours, theirs = one_pass(*arrays, None, *options, variant=variant), in_turn(*arrays, None, *options, variant)
    np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize(("one_pass", "in_turn", "shapes", "options"), SMALL, ids=named)
def test_numbers_that_are_not_finite(
    one_pass: Layers, in_turn: Layers, shapes: Any, options: tuple[Any, ...], place: int, bad: float
) -> None:
    leaves = [torch.randn(size) for size in (*shapes, shapes[1][:1])]
    leaves[place].view(-1)[1] = bad
    for leaf in leaves:
        leaf.requires_grad_()
    with torch.no_grad():
        without = [one_pass(*leaves, *options) for _ in range(2)]  # the first call of its kind, and a remembered one
    found = [*without, *values_and_gradients(one_pass, leaves, *options)]
    first, *gradients = values_and_gradients(in_turn, leaves, *options, None)
    expected = [first, first, first, *gradients]
    assert all(map(partial(torch.allclose, rtol=0, atol=0, equal_nan=True), found, expected))


@pytest.mark.parametrize(("one_pass", "in_turn", "shapes", "options"), SMALL, ids=named)
def test_second_derivatives(one_pass: Layers, in_turn: Layers, shapes: Any, options: tuple[Any, ...]) -> None:
    leaves = [torch.randn(size, dtype=torch.float64).requires_grad_() for size in (*shapes, shapes[1][:1])]
    call = lambda *a: one_pass(*a, *options)  # noqa: E731
    assert torch.autograd.gradcheck(call, leaves)
    assert torch.autograd.gradgradcheck(call, leaves)


@pytest.mark.parametrize("pooling", POOLINGS, ids=str)
@pytest.mark.parametrize("fill", [(-1.0, 0.0), (-1.0, -0.0, 0.0), (-1.0, 0.0, 1.0, math.nan), (-math.inf, -1.0, 2.0)])
def test_relu_may_come_after_pooling(fill: tuple[float, ...], pooling: tuple[Any, ...]) -> None:
    """Ties, zeros of both signs and NaN: the maximum of what relu gives is what it gives of the maximum."""
    leaf = torch.tensor(fill)[torch.randint(len(fill), (2, 3, 12, 13))].requires_grad_()
    weight = torch.ones(3, 1, 1, 1)
    out = F.conv2d_relu_max_pool2d(leaf, weight, None, (1, 0, 1, 3), pooling)
    theirs = nn.functional.max_pool2d(nn.functional.relu(leaf), *pooling)
    grad = torch.randn_like(out)
    torch.testing.assert_close(out, theirs, rtol=0, atol=0, equal_nan=True)
    found, expected = (torch.autograd.grad(result, leaf, grad)[0] for result in (out, theirs))
    torch.testing.assert_close(found, expected)  # overlapping windows add up in another order


def network() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.MaxPool2d(2), nn.ReLU(),
        nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(3, 2),
        nn.Conv2d(4, 2, 1), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(2 * 3 * 3, 3), nn.ReLU(),
    )  # fmt: skip


ALL = ["conv2d_max_pool2d", "conv2d_relu_max_pool2d", "conv2d_relu", "linear_relu"]


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> Callable[[nn.Module], list[str]]:
    """Which layers a model's forward computes in one pass."""

    def names(model: nn.Module) -> list[str]:
        found: list[str] = []
        with monkeypatch.context() as patched:
            for layers in F.ONE_PASS:
                patched.setattr(F, layers.__name__, partial(noted, found, layers))
            model(torch.randn(2, 1, 18, 18))
        return found

    return names


def noted(found: list[str], layers: Layers, *args: Any, **options: Any) -> Any:
    before = len(found)
    found.append(layers.__name__)
    result = layers(*args, **options)
    del found[before + 1 :]  # what it is made of itself
    return result


def test_modules_are_fused_where_nobody_looks_between(passes: Callable[[nn.Module], list[str]]) -> None:
    model = jitconv.nn.convert(network())
    x = torch.randn(2, 1, 18, 18)
    torch.testing.assert_close(model(x), jitconv.nn.convert(model, "torch")(x))
    assert isinstance(model, nn.Sequential)
    assert [name for name, _ in model.named_modules()] == [name for name, _ in network().named_modules()]
    assert passes(model) == ALL


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


def hooked(model: nn.Sequential, index: int) -> None:
    model[index].register_forward_hook(lambda module, args, out: None)


def hooked_backward(model: nn.Sequential, index: int) -> None:
    model[index].register_full_backward_hook(lambda module, grads, of_results: None)


def replaced(model: nn.Sequential, index: int) -> None:
    model[index].forward = model[index].forward


def of_another_variant(model: nn.Sequential, index: int) -> None:
    model[index].variant = "jit"


@pytest.mark.parametrize("disturb", [hooked, hooked_backward, replaced, of_another_variant])
@pytest.mark.parametrize(
    ("index", "left"),
    [(0, ALL[1:]), (4, [ALL[0], *ALL[2:]]), (5, [ALL[0], "conv2d_relu", *ALL[2:]]), (9, ALL[:-1])],
    ids=str,
)
def test_what_looks_between_is_let_look(
    index: int, left: list[str], disturb: Callable[..., None], passes: Callable[[nn.Module], list[str]]
) -> None:
    model = jitconv.nn.convert(network())
    disturb(model, index)
    assert passes(model) == left


def test_options_that_no_one_pass_takes(passes: Callable[[nn.Module], list[str]]) -> None:
    around = jitconv.nn.convert(nn.Sequential(nn.Conv2d(1, 4, 3, padding=1, padding_mode="reflect"), nn.ReLU()))
    assert passes(around) == []
    indices = jitconv.nn.convert(nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2, return_indices=True)))
    assert passes(indices) == ["conv2d_relu"]


@pytest.mark.parametrize("layer", ["conv2d", "linear", "relu", "max_pool2d"])
def test_kernels_of_a_users_own_are_never_passed_over(layer: str) -> None:
    base, asked = variants.get("jit-tiled"), 0

    def kernel(*args: Any) -> None:
        nonlocal asked
        asked += 1
        base.ops[layer](*args)

    mine = jitconv.register_variant("mine", base="jit-tiled", **{layer: kernel})
    assert base.ops.keys() - mine.ops.keys() == {op for op, parts in variants.FUSED_OPS.items() if layer in parts}
    jitconv.nn.convert(network(), "mine")(torch.randn(2, 1, 18, 18))
    assert asked == sum(kind.__name__.lower() == layer.replace("_", "") for kind in map(type, network()))
