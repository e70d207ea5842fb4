"""jit-static: code for one geometry, kept by geometry, shared out by planes, and never more of it than is allowed."""

import math
from types import FunctionType
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.instructions import innermost
from jitconv import functional as F
from jitconv import variants
from jitconv.variants import rows, scalar, static
from jitconv.variants.jit import of_worker
from jitconv.variants.workers import ALONE, portion


def some(*shape: int) -> np.ndarray:
    return np.random.default_rng(math.prod(shape)).standard_normal(shape, np.float32)


def test_every_geometry_has_code_of_its_own_and_one_only() -> None:
    kernel = variants.get("jit-static").ops["linear_grad_input"]
    before = len(kernel.bound)
    for N in (3, 4, 3):
        grad, weight = some(N, 5), some(5, 7)
        out = np.empty((N, 7), np.float32)
        kernel(grad, weight, out)
        np.testing.assert_allclose(out, grad @ weight, rtol=1e-5, atol=1e-5)
    assert len(kernel.bound) == before + 2


def test_beyond_the_allowed_number_of_geometries_it_is_jits_code(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = static.Static("linear_grad_weight", variants.get("jit").ops["linear_grad_weight"])
    monkeypatch.setattr(static, "GEOMETRIES", 0)
    assert kernel.bind([((2, 3), np.float32), ((2, 4), np.float32), ((3, 4), np.float32)], ()) is kernel.plain


def test_the_sizes_are_in_the_code_not_in_the_arrays() -> None:
    grad, weight = some(2, 3), some(3, 4)
    shapes = [(array.shape, array.dtype) for array in (grad, weight, grad[:, :1].repeat(4, 1))]
    function = static.compile_for("linear_grad_input", shapes, (), cache=False)
    out = np.zeros((5, 4), np.float32)  # larger than it is told: only the rows that it was told of are written
    function(ALONE, 1, grad, weight, out)
    assert np.all(out[2:] == 0)
    np.testing.assert_allclose(out[:2], grad @ weight, rtol=1e-5)


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_workers_share_the_planes(workers: int) -> None:
    x, weight, bias = some(2, 3, 9, 8), some(4, 3, 3, 3), some(4)
    out = np.zeros((2, 4, 9, 8), np.float32)
    constants = ((1, 1), (1, 1), (1, 1))
    shapes = [(array.shape, array.dtype) for array in (x, weight, bias, out)]
    static.compile_for("conv2d", shapes, constants, cache=False)(ALONE, workers, x, weight, bias, out)
    expected = torch.nn.functional.conv2d(*map(torch.from_numpy, (x, weight, bias)), padding=1).numpy()
    np.testing.assert_allclose(out, expected, rtol=1e-4, atol=1e-5)


def _arguments(op: str) -> tuple[Any, ...]:
    """What a driver takes before `out`, and the shape of that."""
    conv, pool = ((1, 1), (1, 1), (1, 1)), ((2, 2), (2, 2), (0, 0), (1, 1))
    x, weight, z = some(2, 3, 4, 5), some(4, 3, 3, 3), some(2, 4, 4, 5)
    images, matrix, grad = some(5, 7), some(70, 7), some(5, 70)
    return {
        "conv2d": ((x, weight, some(4), *conv), z.shape),
        "conv2d_grad_input": ((z, weight, *conv), x.shape),
        "conv2d_grad_weight": ((z, x, *conv), weight.shape),
        "conv2d_grad_bias": ((z,), (4,)),
        "linear": ((images, matrix, some(70)), grad.shape),
        "linear_grad_input": ((images, some(7, 70)), (5, 70)),
        "linear_grad_weight": ((images, grad), (7, 70)),
        "max_pool2d": ((x, *pool), (2, 3, 2, 2)),
        "max_pool2d_grad_input": ((some(2, 3, 2, 2), np.zeros((2, 3, 2, 2), np.int64), *pool), x.shape),
    }[op]


@pytest.mark.parametrize("op", static.SOURCES)
def test_every_output_is_the_work_of_one_worker(op: str) -> None:
    module, (inputs, shape) = static.SOURCES[op][0], _arguments(op)
    plain = {"portion": portion.py_func, "registers": lambda like, length: np.empty(length, like.dtype)}
    names = {**vars(module), **plain}
    for name, function in vars(module).items():
        if isinstance(function, FunctionType) and function.__module__ == module.__name__:
            names[name] = FunctionType(function.__code__, names, name)
    driver, writers = of_worker(names[op]), np.zeros(shape, int)
    for worker in range(2):
        outs = [np.full(shape, np.nan, np.float32)]
        if op == "max_pool2d":
            outs.append(np.zeros(shape, np.int64))
        driver(worker, 2, *inputs, *outs)
        assert not np.isnan(outs[0]).all()
        writers += ~np.isnan(outs[0])
    assert (writers == 1).all()


@pytest.mark.parametrize("width", [5, 8, 33, 65, 131])
def test_rows_of_any_width(width: int) -> None:
    x = torch.randn(1, 2, 3, width, dtype=torch.float64, requires_grad=True)
    w = torch.randn(3, 2, 2, 3, dtype=torch.float64, requires_grad=True)
    for padding, stride in ((0, 1), (2, 1), (1, 2)):
        z = torch.nn.functional.conv2d(x, w, padding=padding, stride=stride)
        ours = F.conv2d(x, w, padding=padding, stride=stride, variant="jit-static")
        torch.testing.assert_close(ours, z)
        expected = torch.autograd.grad(z, (x, w), torch.ones_like(z))
        torch.testing.assert_close(torch.autograd.grad(ours, (x, w), torch.ones_like(z)), expected)


def test_the_sums_of_the_digits_convolution_stay_in_registers() -> None:
    shapes = [
        ((64, 1, 28, 28), np.float32),
        ((20, 1, 5, 5), np.float32),
        ((20,), np.float32),
        ((64, 20, 24, 24), np.float32),
    ]
    shapes = [(shape, np.dtype(dtype)) for shape, dtype in shapes]
    function = static.compile_for("conv2d", shapes, ((1, 1), (0, 0), (1, 1)), cache=False)
    function(ALONE, 1, *(some(*shape) for shape, _ in shapes))
    loops = innermost(next(iter(function.inspect_asm().values())))
    assert loops
    assert not any(loop.calls for loop in loops)
    best = max(loops, key=lambda loop: loop.multiply_adds)
    assert best.multiply_adds > 4 * best.stores


def test_what_gains_nothing_is_jits_code() -> None:
    ours, jit = variants.get("jit-static").ops, variants.get("jit-parallel").ops
    assert set(static.SOURCES) <= set(variants.OPS)
    assert all((ours[op] is jit[op]) == (op not in static.SOURCES) for op in variants.OPS)
    assert all(hasattr(module, op) for op, (module, _) in static.SOURCES.items() if module in (rows, scalar))
