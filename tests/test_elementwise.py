"""Arithmetic on tiles, lane by lane: exp and log against exact values, the rest against NumPy."""

from decimal import Decimal

import numpy as np
import pytest
from numba import njit

from jitconv.variants import simd
from jitconv.variants.elementwise import broadcast, exp, load, log, maximum, reduce_add, reduce_max, store, tile_size
from jitconv.variants.simd import zeros

DTYPES = ("float32", "float64")
REGISTERS = 3  # of a tile
LIMITS = {"float32": (-105.0, 89.0), "float64": (-747.0, 710.0)}


@njit
def _exp(x, out):
    like = zeros(x, 1, 2)
    for i in range(0, x.size, tile_size(like)):
        store(exp(load(like, x, i, x.size - i, 0)), out, i, x.size - i)


@njit
def _log(x, out):
    like = zeros(x, 1, 1)
    for i in range(0, x.size, tile_size(like)):
        store(log(load(like, x, i, x.size - i, 1)), out, i, x.size - i)


@njit
def _arithmetic(a, b, out, n):
    like = zeros(a, 1, REGISTERS)
    x, y = load(like, a, 1, n, -7), load(like, b, 0, n, 2)
    store((x + y) * (x - y) / maximum(broadcast(like, 3), y), out, 2, n)
    store(reduce_max(x), out, 2 + tile_size(like), 1)
    store(reduce_add(x), out, 3 + tile_size(like), 1)


def errors(found: np.ndarray, exact: list[Decimal], floor: float = 0.0) -> np.ndarray:
    """The distance of each number from the exact one, in units of its last place, or of `floor` where that is more."""
    nearest = np.array(exact, "float64").astype(found.dtype)
    ulp = np.maximum(np.spacing(abs(nearest)), floor)
    return np.array([float(abs(Decimal(float(f)) - e) / Decimal(float(u))) for f, e, u in zip(found, exact, ulp)])  # noqa: B905


@pytest.mark.parametrize("dtype", DTYPES)
def test_exp_is_within_one_ulp(dtype: str) -> None:
    chance = np.random.default_rng(0)
    x = np.concatenate([chance.uniform(*LIMITS[dtype], 2003), chance.uniform(-1, 1, 500)]).astype(dtype)
    x = x[x < np.log(np.finfo(dtype).max)]
    out = np.empty_like(x)
    _exp(x, out)
    assert errors(out, [Decimal(float(v)).exp() for v in x]).max() < 1


@pytest.mark.parametrize("dtype", DTYPES)
def test_exp_at_the_ends(dtype: str) -> None:
    low, high = LIMITS[dtype]
    x = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, high, low, 1e30, -1e30], dtype)
    out = np.empty_like(x)
    _exp(x, out)
    np.testing.assert_array_equal(out, np.array([np.nan, np.inf, 0, 1, 1, np.inf, 0, np.inf, 0], dtype))


@pytest.mark.parametrize("dtype", DTYPES)
def test_log_of_sums_of_exponentials(dtype: str) -> None:
    x = (1 + np.exp(np.random.default_rng(0).uniform(-20, 20, 1001))).astype(dtype)
    out = np.empty_like(x)
    _log(x, out)
    assert errors(out, [Decimal(float(v)).ln() for v in x], np.finfo(dtype).eps).max() < 2
    _log(np.full_like(x, np.nan), out)
    assert np.isnan(out).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("share", [0.0, 0.4, 0.9, 1.0, 2.0])
def test_arithmetic(dtype: str, share: float) -> None:
    size = REGISTERS * simd.lanes_of(dtype)
    n, chance = int(share * size), np.random.default_rng(1)
    a, b = (chance.integers(-9, 10, 2 * size + 1).astype(dtype) for _ in range(2))
    out = np.full(2 * size + 4, 100, dtype)
    expected = out.copy()
    inside = min(n, size)
    x, y = a[1 : 1 + inside], b[:inside]
    expected[2 : 2 + inside] = (x + y) * (x - y) / np.maximum(3, y)
    lanes = np.concatenate([x, np.full(size - inside, -7, dtype)])
    expected[2 + size : 4 + size] = lanes.max(), lanes.sum()
    _arithmetic(a, b, out, n)
    np.testing.assert_array_equal(out[: 4 + inside], expected[: 4 + inside])
