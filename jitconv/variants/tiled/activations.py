"""Activations that a convolution's epilogue does not compute in registers: one pass over the result, in place."""

from functools import partial

from jitconv.variants.compiling import inner
from jitconv.variants.elementwise import broadcast, exp, load, store, tile_size
from jitconv.variants.simd import zeros
from jitconv.variants.tiled.microkernel import clamp
from jitconv.variants.tiled.product import share
from jitconv.variants.workers import each_worker

SIDE_BY_SIDE = 2  # registers that a loop works on


def _in_place(activation):
    """out[i] = activation(out[i])"""

    @inner
    def walk(worker, workers, out):
        unit = zeros(out, 1, SIDE_BY_SIDE)
        step = tile_size(unit)
        begin, end = share(out.size, worker, workers, step)
        for i in range(begin, end, step):
            store(activation(load(unit, out, i, end - i, 0)), out, i, end - i)

    return walk


@partial(inner, forceinline=True)
def _silu_of(x):
    one = broadcast(x, 1)
    return x / (one + exp(broadcast(x, 0) - x))


@partial(inner, forceinline=True)
def _hardswish_of(x):
    return x * clamp(x + broadcast(x, 3), 0, 6) / broadcast(x, 6)


@partial(inner, forceinline=True)
def _sigmoid_of(x):
    one = broadcast(x, 1)
    return one / (one + exp(broadcast(x, 0) - x))


@partial(inner, forceinline=True)
def _hardsigmoid_of(x):
    return clamp(x + broadcast(x, 3), 0, 6) / broadcast(x, 6)


_silu, _hardswish = _in_place(_silu_of), _in_place(_hardswish_of)
_sigmoid, _hardsigmoid = _in_place(_sigmoid_of), _in_place(_hardsigmoid_of)


def silu(start, workers, out):
    """out[i] = out[i] / (1 + exp(−out[i]))"""
    each_worker(start, workers, _silu, (out,))


def hardswish(start, workers, out):
    """out[i] = out[i] · min(max(out[i] + 3, 0), 6) / 6"""
    each_worker(start, workers, _hardswish, (out,))


def sigmoid(start, workers, out):
    """out[i] = 1 / (1 + exp(−out[i]))"""
    each_worker(start, workers, _sigmoid, (out,))


def hardsigmoid(start, workers, out):
    """out[i] = min(max(out[i] + 3, 0), 6) / 6"""
    each_worker(start, workers, _hardsigmoid, (out,))
