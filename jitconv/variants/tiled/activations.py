"""Activations that a convolution's epilogue does not compute in registers: one pass over the result, in place."""

from jitconv.variants.compiling import inner
from jitconv.variants.elementwise import broadcast, exp, load, store, tile_size
from jitconv.variants.simd import zeros
from jitconv.variants.tiled.microkernel import clamp
from jitconv.variants.tiled.product import share
from jitconv.variants.workers import each_worker

WIDE = 2  # registers at once


def silu(team, workers, out):
    """out[i] = out[i] / (1 + exp(−out[i]))"""
    each_worker(team, workers, _silu, (out,))


@inner
def _silu(worker, workers, out):
    unit = zeros(out, 1, WIDE)
    one, nothing, step = broadcast(unit, 1), broadcast(unit, 0), tile_size(unit)
    begin, end = share(out.size, worker, workers, step)
    for i in range(begin, end, step):
        x = load(unit, out, i, end - i, 0)
        store(x / (one + exp(nothing - x)), out, i, end - i)


def hardswish(team, workers, out):
    """out[i] = out[i] · min(max(out[i] + 3, 0), 6) / 6"""
    each_worker(team, workers, _hardswish, (out,))


@inner
def _hardswish(worker, workers, out):
    unit = zeros(out, 1, WIDE)
    three, six, step = broadcast(unit, 3), broadcast(unit, 6), tile_size(unit)
    begin, end = share(out.size, worker, workers, step)
    for i in range(begin, end, step):
        x = load(unit, out, i, end - i, 0)
        store(x * clamp(x + three, 0, 6) / six, out, i, end - i)
