"""Vector registers, lane by lane, against the same loops in NumPy."""

import numpy as np
import pytest
from numba import njit

from jitconv.variants import simd
from jitconv.variants.simd import (
    MR,
    NR_VECTORS,
    accumulate,
    copy_down,
    copy_vector,
    fma_dots,
    fma_outer,
    lanes,
    reduce_lanes,
    store,
    transpose,
    zeros,
)

DTYPES = ("float32", "float64")


@njit
def _outer(a, b, c, n, added):
    tile = fma_outer(zeros(c, MR, NR_VECTORS), a, 1, 1, b, 2, n)
    if added:
        accumulate(tile, c, 3, NR_VECTORS * lanes(c) + 1, n)
    else:
        store(tile, c, 3, NR_VECTORS * lanes(c) + 1, n)


@njit
def _dots(a, b, at, c, n):
    reduce_lanes(fma_dots(zeros(a, 3, 3), a, at, b, at, 1, n), c)


@njit
def _move(a, c, n):
    copy_vector(a, 1, c, 2, n)


@njit
def _down(a, c, count):
    copy_down(a, 1, lanes(a) + 2, c, 2, lanes(a) + 1, count)


@njit
def _turn(a, b, rows, columns):
    transpose(a, 1, lanes(a) + 3, b, 2, lanes(a) + 1, rows, columns)


def numbers(count: int, dtype: str) -> np.ndarray:
    return np.random.default_rng(count).integers(-9, 10, count).astype(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("added", [False, True])
@pytest.mark.parametrize("share", [None, 0.0, 0.3, 0.6, 1.0])
def test_outer_products(dtype: str, added: bool, share: float | None) -> None:
    width = NR_VECTORS * simd.lanes_of(dtype)
    n = None if share is None else int(share * width)
    a, b = numbers(MR + 1, dtype), numbers(width + 2, dtype)
    c = numbers(3 + MR * (width + 1), dtype)
    expected = c.copy()
    inside = expected[3:].reshape(MR, width + 1)[:, : width if n is None else n]
    product = np.outer(a[1:], b[2:])[:, : inside.shape[1]]
    inside[...] = inside + product if added else product
    _outer(a, b, c, n, added)
    np.testing.assert_array_equal(c, expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [None, 0, 1, 3])
def test_dot_products(dtype: str, n: int | None) -> None:
    width = simd.lanes_of(dtype)
    n = None if n is None else min(n, width)
    a, b, at, c = (
        numbers(3 * width + 1, dtype),
        numbers(3 * width + 2, dtype),
        np.arange(3) * width,
        np.zeros(9 + width, dtype),
    )
    _dots(a, b, at, c, n)
    count = width if n is None else n
    rows = [[a[1 + i : 1 + i + count] @ b[1 + j : 1 + j + count] for j in at] for i in at]
    np.testing.assert_array_equal(c[:9].reshape(3, 3), rows)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [None, 0, 1])
def test_moves(dtype: str, n: int | None) -> None:
    width = simd.lanes_of(dtype)
    a, c = numbers(width + 1, dtype), numbers(width + 3, dtype)
    expected = c.copy()
    count = width if n is None else n
    expected[2 : 2 + count] = a[1 : 1 + count]
    _move(a, c, n)
    np.testing.assert_array_equal(c, expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("count", [0, 1, 9])
def test_moves_of_several_lines(dtype: str, count: int) -> None:
    width = simd.lanes_of(dtype)
    a, c = numbers(1 + 9 * (width + 2), dtype), numbers(2 + 9 * (width + 1), dtype)
    expected = c.copy()
    for m in range(count):
        from_, to = 1 + m * (width + 2), 2 + m * (width + 1)
        expected[to : to + width] = a[from_ : from_ + width]
    _down(a, c, count)
    np.testing.assert_array_equal(c, expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [0, 1, 3, None])
@pytest.mark.parametrize("columns", [1, 2, None])
def test_turned_squares(dtype: str, rows: int | None, columns: int | None) -> None:
    width = simd.lanes_of(dtype)
    rows, columns = (width if n is None else min(n, width) for n in (rows, columns))
    a, b = numbers(1 + width * (width + 3), dtype), numbers(2 + width * (width + 1), dtype)
    expected = b.copy()
    square = a[1:].reshape(width, width + 3)[:rows, :columns]
    expected[2:].reshape(width, width + 1)[:columns, :rows] = square.T
    _turn(a, b, rows, columns)
    np.testing.assert_array_equal(b, expected)


def test_a_masked_tail_reads_and_writes_nothing_beyond() -> None:
    """The last number lies at the end of a page that nothing follows."""
    import ctypes
    import mmap

    page = mmap.PAGESIZE
    pages = mmap.mmap(-1, 2 * page)
    start = ctypes.addressof(ctypes.c_char.from_buffer(pages))
    libc = ctypes.CDLL(None)
    assert libc.mprotect(ctypes.c_void_p(start + page), page, 0) == 0
    a = np.frombuffer(pages, "float32", count=page // 4)[-2:]
    a[:] = (1, 2)
    _move(a, out := np.zeros(64, "float32"), 1)
    assert out[2] == 2
