"""What the processor can do at most, measured: multiply-adds in registers, and bytes copied from caches and memory."""

from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from numba import prange

from benchmarks.measure import measure
from benchmarks.rows import LANES, Row
from jitconv.speed import multiply_adds
from jitconv.variants import simd
from jitconv.variants.compiling import njit
from jitconv.variants.simd import MR, NR_VECTORS

STEPS = 1 << 20
COPIED = {  # bytes of one of the two arrays, which fit the cache named, and not the one before it
    "in the second-level cache": 1 << 18,
    "in the third-level cache": 1 << 22,
    "from memory": 1 << 28,
}


def _copy(source, target):
    for i in prange(source.shape[0]):
        target[i] = source[i]


def _peak(a, b, out):
    for core in prange(out.shape[0]):
        multiply_adds(a, b, out[core], STEPS)


def rows(full: bool) -> list[Row]:
    tile = MR * NR_VECTORS * simd.lanes_of(np.float32)
    peak = Row(
        group="machine", work="float32 multiply-adds", layer="machine", quantity="peak", variant="machine",
        threads=1, flops=2.0 * STEPS * tile,
    )  # fmt: skip
    copies = [
        Row(
            group="machine", work=f"copy {where}", layer="machine", quantity="bandwidth", variant="machine",
            threads=1, bytes=2.0 * size, size=size,
        )
        for where, size in COPIED.items()
    ]  # fmt: skip
    return [replace(row, threads=threads, flops=row.flops * threads) for row in (peak, *copies) for threads in LANES]


def test_machine(benchmark: Any, row: Row) -> None:
    compiled = partial(njit, parallel=row.threads > 1, cache=False)
    if row.quantity == "peak":
        a, b = np.ones(64, np.float32), np.ones(64, np.float32)
        out = np.zeros((row.threads, MR * 64), np.float32)
        measure(benchmark, row, partial(compiled(_peak), a, b, out))
    else:
        source, target = np.ones(row.size // 4, np.float32), np.ones(row.size // 4, np.float32)
        measure(benchmark, row, partial(compiled(_copy), source, target))
