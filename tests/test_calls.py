"""Calls that are remembered: the second of its kind gives what the first did, and anything else is looked at anew."""

import pytest
import torch
from torch.nn import functional as torch_functional

import jitconv
from jitconv import functional as F
from jitconv import layer, variants

X, W, B = torch.randn(2, 1, 6, 6), torch.randn(2, 1, 3, 3), torch.randn(2)


def twice(layer: str, *args: object, **options: object) -> torch.Tensor:
    first, second = (getattr(F, layer)(*args, **options) for _ in range(2))
    assert torch.equal(first, second)
    return second


def known(layer: str) -> list[object]:
    return [op for (what, *_), op in variants.get("jit-tiled").calls.items() if what is getattr(F, layer).__wrapped__]


def test_calls_are_bound_once() -> None:
    variants.get("jit-tiled").calls.clear()
    twice("linear", torch.ones(2, 3), torch.ones(4, 3))
    twice("linear", torch.ones(2, 2, 3), torch.ones(4, 3))
    twice("conv2d", X, W, bias=B)
    twice("relu", X.transpose(2, 3))
    assert len(known("linear")) == 2
    assert len(known("conv2d")) == 1
    assert len(known("_relu")) == 1
    twice("relu", torch._neg_view(X))
    assert len(known("_relu")) == 1


@pytest.mark.parametrize("options", [(2,), (3, 2, 1), (2, None, 0, 1, True)], ids=str)
def test_indices_are_kept_where_a_gradient_needs_them(options: tuple[object, ...]) -> None:
    image = torch.randn(2, 3, 7, 9)
    leaf, theirs = image.clone().requires_grad_(), image.clone().requires_grad_()
    result = torch_functional.max_pool2d(theirs, *options)
    assert torch.equal(twice("max_pool2d", image, *options), result)
    out = F.max_pool2d(leaf, *options)
    assert torch.equal(F.max_pool2d(image, *options), out)
    grad = torch.randn_like(out)
    ours, expected = torch.autograd.grad(out, leaf, grad)[0], torch.autograd.grad(result, theirs, grad)[0]
    torch.testing.assert_close(ours, expected)


def test_a_view_is_remembered_as_an_op_is() -> None:
    variants.get("jit-tiled").calls.clear()
    for _ in range(2):
        assert F.flatten(X, 1).data_ptr() == X.data_ptr()
        assert torch.equal(F.flatten(X, 1), X.flatten(1))
        assert torch.equal(F.flatten(X), X.flatten())
        assert torch.equal(F.flatten(X.transpose(2, 3), 1), X.transpose(2, 3).flatten(1))
    assert len(known("flatten")) == 3
    with pytest.raises(TypeError, match="start_dim"):
        F.flatten(X, True)


def test_every_option_and_every_shape_counts() -> None:
    for options in ({}, {"stride": 2}, {"stride": (2, 1)}, {"padding": "same"}, {"padding": 1, "dilation": 2}):
        for x, w in ((X, W), (X[:1], W), (X.double(), W.double()), (torch.cat((X, X), 1), torch.cat((W, W), 1))):
            expected = torch_functional.conv2d(x, w, None, **options)
            torch.testing.assert_close(twice("conv2d", x, w, **options), expected)
            torch.testing.assert_close(twice("conv2d", x, w, B.to(x.dtype), **options), expected + B[:, None, None])
    torch.testing.assert_close(twice("softmax", X[0, 0], 0), torch.softmax(X[0, 0], 0))
    torch.testing.assert_close(twice("softmax", X[0, 0], 1), torch.softmax(X[0, 0], 1))


@pytest.mark.parametrize("stride", [True, 1.0, (True, 1), [1.0, 1], {}, set()])
def test_what_equals_a_good_option_is_still_refused(stride: object) -> None:
    twice("conv2d", X, W, None, 1)
    twice("conv2d", X, W, None, (1, 1))
    with pytest.raises((TypeError, ValueError), match="stride"):
        F.conv2d(X, W, None, stride)  # type: ignore[arg-type]


def test_tensors_that_only_look_alike() -> None:
    x = torch.randn(4, 4)
    twice("relu", x)
    torch.testing.assert_close(F.relu(x.t()), torch.relu(x.t()))
    negative = torch._neg_view(x)
    torch.testing.assert_close(F.relu(negative), torch.relu(negative))
    shifted = torch.randn(17)[1:].view(4, 4)
    torch.testing.assert_close(F.relu(shifted), torch.relu(shifted))
    with pytest.raises(TypeError, match="layout"):
        F.relu(x.to_sparse())
    assert F.relu(x.to("meta")).is_meta
    assert isinstance(F.relu(torch.nn.Parameter(x)).grad_fn, torch.autograd.graph.Node)


def test_gradients_of_remembered_calls() -> None:
    for _ in range(2):
        x, w = X.clone().requires_grad_(), W.clone().requires_grad_()
        found = torch.autograd.grad(F.conv2d(x, w, B, padding=1).square().sum(), (x, w))
        expected = torch.autograd.grad(torch_functional.conv2d(x, w, B, padding=1).square().sum(), (x, w))
        torch.testing.assert_close(found, expected)
        with torch.no_grad():
            assert not F.conv2d(x, w, B, padding=1).requires_grad


def test_gradients_are_remembered_where_every_tensor_has_one_place() -> None:
    square, other = torch.randn(3, 3).requires_grad_(), torch.randn(3, 3).requires_grad_()
    for x, w in ((square, square), (square, other), (other, square), (square, square)):  # all of one shape
        found = torch.autograd.grad(F.linear(x, w).square().sum(), (x, w))
        torch.testing.assert_close(found, torch.autograd.grad(torch_functional.linear(x, w).square().sum(), (x, w)))


def test_gradients_wanted_of_some_tensors_only_and_of_other_strides() -> None:
    for wanted in ((True, True), (True, False), (False, True), (True, True)):
        x, w = X.clone().requires_grad_(wanted[0]), W.clone().requires_grad_(wanted[1])
        leaves = [leaf for leaf in (x, w) if leaf.requires_grad]
        for grad in (
            torch.randn(2, 2, 4, 4),
            torch.randn(2, 2, 4, 4).transpose(2, 3),
            torch.ones(()).expand(2, 2, 4, 4),
        ):
            found = torch.autograd.grad(F.conv2d(x, w), leaves, grad)
            torch.testing.assert_close(found, torch.autograd.grad(torch_functional.conv2d(x, w), leaves, grad))


def test_saved_tensors_may_come_back_otherwise() -> None:
    x, w = torch.randn(3, 3), torch.randn(3, 3).requires_grad_()
    F.linear(x, w).sum().backward()
    expected, w.grad = w.grad, None
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t.t().contiguous().t()):
        F.linear(x, w).sum().backward()
    torch.testing.assert_close(w.grad, expected)


def test_indices_that_nobody_asked_for_are_no_results() -> None:
    x = X.clone().requires_grad_()
    for _ in range(3):
        out, indices = F.max_pool2d(x, 2, return_indices=True)
        assert not indices.requires_grad
        assert torch.equal(out, F.max_pool2d(x, 2))
        assert torch.equal(*(torch.autograd.grad(y.sum(), x)[0] for y in (out, F.max_pool2d(x, 2))))


def test_a_variant_that_is_registered_anew_is_called_anew() -> None:
    for value in (1.0, 2.0):

        def constant(x: object, out: object, value: float = value) -> None:
            out[:] = value  # type: ignore[index]

        jitconv.register_variant("constant", base="jit", relu=constant)
        assert twice("relu", X, variant="constant").unique().tolist() == [value]


def test_a_variant_of_another_device_is_refused_though_it_is_loaded() -> None:
    base = variants.get("jit")
    elsewhere = variants.add(variants.Variant("elsewhere", "cuda", base.ops))
    for _ in range(2):
        with pytest.raises(ValueError, match="runs on cuda"):
            F.relu(X, variant="elsewhere")
    assert not elsewhere.calls


def test_only_so_many_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layer, "CALLS", 8)
    for length in range(1, 40):
        twice("relu", torch.randn(length))
    assert len(variants.get("jit-tiled").calls) <= 8


def test_targets_are_looked_at_every_time() -> None:
    logits = torch.randn(2, 4)
    twice("cross_entropy", logits, torch.tensor([1, 3]))
    for wrong in (4, -1):
        with pytest.raises(ValueError, match=f"target must be in .* got {wrong}"):
            F.cross_entropy(logits, torch.tensor([1, wrong]))
    assert F.cross_entropy(logits, torch.tensor([1, -100])).isfinite()
