"""What one core can do at most, measured in about two seconds: multiply-adds in registers, bytes copied from memory."""

import functools
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from jitconv.variants import simd
from jitconv.variants.compiling import njit
from jitconv.variants.simd import MR, NR_VECTORS

COPIED = 128 << 20  # bytes, more than caches hold
SECONDS = 0.7  # for each of the two


@njit
def multiply_adds(a, b, out, steps):
    """A full register tile, multiplied and added over and over by numbers in the first-level cache."""
    tile = simd.zeros(b, MR, NR_VECTORS)
    for _ in range(steps):
        tile = simd.fma_outer(tile, a, 0, 1, b, 0, None)
    simd.store(tile, out, 0, NR_VECTORS * simd.lanes(b), None)


def measure() -> dict[str, float]:
    """Return float32 GFLOP/s in registers ("peak_gflops") and GB/s read and written ("bandwidth_gb_s") of one core."""
    source, target = np.ones(COPIED // 4, np.float32), np.ones(COPIED // 4, np.float32)
    copied = 2e-9 * COPIED / _least(np.copyto, target, source)
    return {"peak_gflops": round(peak(), 1), "bandwidth_gb_s": round(copied, 1)}


@functools.cache
def peak() -> float:
    """Return one core's float32 GFLOP/s in registers, measured once in a process."""
    tile, steps = MR * NR_VECTORS * simd.lanes_of(np.float32), 1 << 18
    a, b, out = np.ones(64, np.float32), np.ones(64, np.float32), np.zeros(tile, np.float32)
    return 2e-9 * steps * tile / _least(multiply_adds, a, b, out, steps)


def _least(function: Callable[..., Any], *args: Any) -> float:
    """The shortest of the calls made in SECONDS, the first one, which compiles, apart."""
    function(*args)
    end, least = time.perf_counter() + SECONDS, float("inf")
    while (start := time.perf_counter()) < end:
        function(*args)
        least = min(least, time.perf_counter() - start)
    return least


def kernels() -> str:
    """Return in words which registers and which register tile the kernels of jit-tiled have on this CPU."""
    lanes = simd.lanes_of(np.float32)
    return f"registers of {simd.REGISTER_BYTES * 8} bits, {lanes} float32; register tile {MR} × {NR_VECTORS * lanes}"
