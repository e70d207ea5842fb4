"""Every layer × variant × case × dtype, values and gradients, against torch: one helper, one table, one tolerance."""

import math

import numpy as np
import pytest
import torch
from conftest import CPU_VARIANTS

from jitconv import functional, variants
from jitconv.cases import CASES, Case, sampled
from jitconv.verify import check

PATIENCE = 2_000  # elements of the largest array that the interpreter is asked to loop over


def bearable(case: Case, variant: str) -> bool:
    return variant != "interpreted" or max(math.prod(shape) for shape in case.arrays.values()) < PATIENCE


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    ("case", "variant"),
    [(case, variant) for variant in CPU_VARIANTS for case in sampled(variant, CASES) if bearable(case, variant)],
    ids=str,
)
def test_values_and_gradients_equal_torch(case: Case, variant: str, dtype: str) -> None:
    wrong = [result for result in check(case, variant, dtype) if not result.ok]
    assert not wrong


@pytest.mark.parametrize("case", [case for case in CASES if bearable(case, "interpreted")], ids=str)
def test_numpy_in_numpy_out(case: Case, variant: str) -> None:
    inputs = case.inputs("float32")
    layer = getattr(functional, case.layer)
    kept = {name: value.copy() for name, value in inputs.items()}
    result = layer(**inputs, **case.arguments, variant=variant)
    tensors = {name: torch.from_numpy(value.copy()) for name, value in inputs.items()}
    expected = layer(**tensors, **case.arguments, variant=variant).numpy()
    assert isinstance(result, np.ndarray)
    np.testing.assert_allclose(result, expected, rtol=1e-6, atol=1e-6)
    for name, value in inputs.items():
        np.testing.assert_array_equal(value, kept[name], err_msg=f"{name} was overwritten")


def test_interpreted_loops_over_tensors_too() -> None:
    x, w, b = torch.randn(2, 3, 5, 6), torch.randn(4, 3, 2, 3), torch.randn(4)
    kept = b.clone()
    on_tensors = functional.conv2d(x, w, b, padding=1, variant="interpreted")
    on_arrays = functional.conv2d(x.numpy(), w.numpy(), b.numpy(), padding=1, variant="interpreted")
    torch.testing.assert_close(on_tensors, torch.from_numpy(on_arrays))
    assert torch.equal(b, kept)


def test_relu_in_place(variant: str) -> None:
    x = torch.randn(4, 5)
    expected = x.clamp(min=0)
    assert functional.relu(x, inplace=True, variant=variant) is x
    assert torch.equal(x, expected)
    leaf = torch.randn(3, requires_grad=True)
    doubled = leaf * 2
    functional.relu(doubled, inplace=True, variant=variant).sum().backward()
    assert torch.equal(leaf.grad, 2.0 * (leaf.detach() > 0))
    array = np.array([-1.0, 2.0])
    assert functional.relu(array, inplace=True, variant=variant) is array
    assert array.tolist() == [0.0, 2.0]


def test_pooling_values_without_indices_are_the_same(variant: str) -> None:
    x = torch.randn(2, 3, 9, 8)
    out, indices = functional.max_pool2d(x, 2, return_indices=True, variant=variant)
    assert torch.equal(functional.max_pool2d(x, 2, variant=variant), out)
    assert indices.dtype == torch.int64
    assert torch.equal(x.flatten(2).gather(2, indices.flatten(2)).view_as(out), out)


def test_softmax_in_another_dtype(variant: str) -> None:
    x = torch.randn(3, 7)
    result = functional.softmax(x, 1, dtype=torch.float64, variant=variant)
    torch.testing.assert_close(result, torch.softmax(x.double(), 1))
    assert result.dtype == torch.float64


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "dilation"), [((1, 32), (2, 3), (3, 2), (2, 1)), ((2, 5), 2, 2, 3)]
)
def test_a_window_without_a_pixel_has_no_maximum(size, kernel, stride, dilation, variant: str) -> None:  # type: ignore[no-untyped-def]
    """One with dilation may step over a small image. torch's gradient then writes outside its memory: no oracle."""
    x = torch.randn(2, 3, *size, requires_grad=True)
    result = functional.max_pool2d(x, kernel, stride, 1, dilation, variant=variant)
    assert torch.equal(result, torch.nn.functional.max_pool2d(x, kernel, stride, 1, dilation))
    assert result.isneginf().any()
    if variant != "torch":
        (grad,) = torch.autograd.grad(result, x, torch.ones_like(result))
        assert grad.sum() == result.isfinite().sum()


def test_the_default_is_the_best_for_the_device() -> None:
    x = torch.randn(2, 3, 6, 6)
    best = functional.max_pool2d(x, 2, variant=variants.BEST["cpu"])
    assert torch.equal(functional.max_pool2d(x, 2), best)


@pytest.mark.parametrize("needed", ["input", "weight", "bias"])
def test_gradients_of_any_subset(variant: str, needed: str) -> None:
    inputs = {"input": torch.randn(2, 3, 6, 5), "weight": torch.randn(4, 3, 3, 2), "bias": torch.randn(4)}
    inputs[needed].requires_grad_()
    functional.conv2d(**inputs, variant=variant).sum().backward()
    grad = inputs[needed].grad
    inputs[needed].grad = None
    torch.nn.functional.conv2d(**inputs).sum().backward()
    torch.testing.assert_close(grad, inputs[needed].grad)


def test_same_bits_every_time(variant: str) -> None:
    x, w, b = torch.randn(9, 5, 12, 11), torch.randn(7, 5, 3, 3), torch.randn(7)
    if variant == "interpreted":
        x = x[:1]
    runs = [functional.conv2d(x, w, b, variant=variant) for _ in range(3)]
    assert torch.equal(runs[0], runs[1])
    assert torch.equal(runs[0], runs[2])
