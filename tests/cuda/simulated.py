"""The CUDA kernels run by Numba's simulator, in tiny blocks, against torch: tests/test_cuda.py starts this file."""

import math
from dataclasses import replace

import numpy as np
import pytest

from jitconv import variants
from jitconv.cases import CASES, Case, contiguous
from jitconv.variants.cuda import matmul
from jitconv.variants.cuda.sizes import FLAT, SIMULATED, SQUARE, Tile, ceil_div
from jitconv.verify import check

assert SIMULATED, "run it with NUMBA_ENABLE_CUDASIM=1"

NAMES = ("cuda", "cuda-tiled")
VARIANTS = [variants.add(replace(variants.get(name), name=f"{name} simulated", device="cpu")).name for name in NAMES]


def bearable(case: Case) -> bool:
    """Small, and not one of the layouts that no kernel sees: what arrives is contiguous."""
    return case.layout is contiguous and max((math.prod(shape) for shape in case.arrays.values()), default=0) < 700


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("case", [case for case in CASES if bearable(case)], ids=str)
def test_values_and_gradients_equal_torch(case: Case, variant: str) -> None:
    wrong = [result for result in check(case, variant) if not result.ok]
    assert not wrong


@pytest.mark.parametrize("splits", [1, 3])
@pytest.mark.parametrize("tile", [SQUARE, FLAT])
def test_products_in_every_tile(tile: Tile, splits: int) -> None:
    M, N, K = tile.BM + 1, tile.BN + 2, 2 * tile.BK + 1
    a, b = np.random.default_rng(0).integers(-3, 4, (2, 2, max(M, N), K)).astype(np.float64)  # sums are exact
    a, b, parts = a[:, :M].copy(), b[:, :N].copy(), np.full((splits, 2, M, N), np.nan)
    grid = 2 * ceil_div(M, tile.BM) * ceil_div(N, tile.BN), splits
    kernel = matmul.product(tile, matmul.ROWS, matmul.ROWS, matmul.store_matrix(False))
    kernel.launch(grid, tile.threads, a, b, a, parts, M, N, K)
    assert np.array_equal(parts.sum(0), a @ b.transpose(0, 2, 1))


@pytest.mark.parametrize("filters", [2, 5])  # by one thread an element, and in tiles
def test_conv2d_with_relu(filters: int) -> None:
    ops, rng = variants.get("cuda-tiled").ops, np.random.default_rng(0)
    x, weight, bias = (rng.standard_normal(shape) for shape in ((1, 2, 4, 3), (filters, 2, 2, 2), filters))
    x[0, 0, 0, 0] = np.nan
    z, out = np.empty((2, 1, filters, 3, 2))
    ops["conv2d"](x, weight, bias, (1, 1), (0, 0), (1, 1), z)
    ops["conv2d_relu"](x, weight, bias, (1, 1), (0, 0), (1, 1), out)
    assert (z < 0).any()
    assert np.isnan(z).any()
    assert np.array_equal(out, np.maximum(z, 0), equal_nan=True)


@pytest.mark.parametrize("inputs", [3, 9])  # in one block, and split between blocks
def test_linear_with_relu(inputs: int) -> None:
    ops, rng = variants.get("cuda-tiled").ops, np.random.default_rng(0)
    x, weight, bias = (rng.standard_normal(shape) for shape in ((2, inputs), (5, inputs), 5))
    z, out = np.empty((2, 2, 5))
    ops["linear"](x, weight, bias, z)
    ops["linear_relu"](x, weight, bias, out)
    assert (z < 0).any()
    assert np.array_equal(out, np.maximum(z, 0))
