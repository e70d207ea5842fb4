"""Weights as blocked convolutions read them, and images from (N, C, H, W) to (N, C/lanes, H, W, lanes) and back."""

import threading
from typing import Any, NamedTuple

import numpy as np

from jitconv.variants.compiling import inner
from jitconv.variants.simd import CACHE_LINE, lanes, lanes_of
from jitconv.variants.tiled.kernel import Tiled
from jitconv.variants.tiled.product import NONE, copy, share, transpose_matrix
from jitconv.variants.workers import each_worker


def aligned(size: int, like: np.ndarray) -> np.ndarray:
    """An array of so many numbers, of the dtype of an array, that begins with a line of the cache."""
    numbers = np.empty(size + CACHE_LINE // like.itemsize, like.dtype)
    first = -numbers.ctypes.data % CACHE_LINE // like.itemsize
    return numbers[first : first + size]


class _Own(threading.local):
    def __init__(self) -> None:
        self.arrays: dict[tuple[str, Any], np.ndarray] = {}


_own = _Own()


def workspace(name: str, size: int, dtype: Any) -> np.ndarray:
    """Memory for so many numbers, which this thread's kernels use one after the other; it is kept, and only grows."""
    found = _own.arrays.get((name, dtype))
    if found is None or found.size < size:
        found = _own.arrays[name, dtype] = aligned(size, np.empty(0, dtype))
    return found[:size]


class Weights(NamedTuple):
    """Which weight is where, in elements: for `groups` · `tiles` filter tiles, `width` output channels side by side.

    A tile has its input channels in blocks of `depth`; channels that are missing are 0. An output channel, an input
    channel and a group are so far apart in the weight; first: the first output channel of a group.
    """

    groups: int
    tiles: int
    width: int
    depth: int
    first: int
    outputs: int  # of a group
    inputs: int
    output: int
    input: int
    group: int
    area: int  # taps of the filter


def input_blocks(weights: Weights) -> int:
    """How many blocks of input channels a filter tile has."""
    return (weights.inputs + weights.depth - 1) // weights.depth


def size_of(weights: Weights, taps: tuple[int, ...]) -> int:
    return weights.groups * weights.tiles * input_blocks(weights) * len(taps) * weights.depth * weights.width


_input_blocks = inner(input_blocks)


def pack_weights(start, workers, weights, taps, source, target):
    """target[tile, block, tap, c, o] = the weight of output channel o, input channel c and tap; taps: their places."""
    each_worker(start, workers, _pack_weights, (weights, taps, source, target))


@inner
def _pack_weights(worker, workers, weights, taps, source, target):
    """The worker's part; what follows each other in the weight is read one after the other."""
    depth, blocks = weights.depth, _input_blocks(weights)
    tiles, rows = weights.groups * weights.tiles, np.zeros(weights.area * depth * weights.width, target.dtype)
    if weights.input == weights.area:  # the weights of an output channel lie together
        begin, end = share(tiles * blocks, worker, workers, 1)
        for index in range(begin, end):
            tile, block = divmod(index, blocks)
            _pack_inputs(weights, taps, source, tile, block * depth, depth, rows, target)
    else:  # those of an input channel
        count = depth if weights.area == 1 else 1
        begin, end = share(blocks * depth, worker, workers, count)
        for c in range(begin, end, count):
            for tile in range(tiles):
                _pack_inputs(weights, taps, source, tile, c, count, rows, target)


@inner
def _pack_inputs(weights, taps, source, tile, c, count, rows, target):
    """Some input channels of a filter tile, by way of `rows`: [input channel, place of a tap, output channel]."""
    (group, o), area, width = divmod(tile, weights.tiles), weights.area, weights.width
    o = weights.first + o * width
    outputs, inputs = min(width, weights.outputs - o), max(min(count, weights.inputs - c), 0)
    i = group * weights.group + o * weights.output + c * weights.input
    if (outputs, inputs) != (width, count):
        rows[:] = 0
    if weights.input == area:
        transpose_matrix(source, i, weights.output, rows, NONE, width, outputs, inputs * area)
    else:
        for k in range(inputs):
            a, b = i + k * weights.input, k * area * width
            if area == 1:
                copy(source, a, rows, b, outputs)
            else:
                transpose_matrix(source, a, weights.output, rows, b, width, outputs, area)
    block, first = divmod(c, weights.depth)
    panel = (tile * _input_blocks(weights) + block) * taps.size * weights.depth * width
    for k in range(count):
        for tap in range(taps.size):
            at = panel + (tap * weights.depth + first + k) * width
            copy(rows, (k * area + taps[tap]) * width, target, at, width)


def to_blocked(start, workers, x, C, pixels, out):
    """out[group, block, pixel, lane] = x[group, channel, pixel] of images or groups of C channels each, flat."""
    each_worker(start, workers, _change_layout, (x, out, C, pixels, True))


def from_blocked(start, workers, x, C, pixels, out):
    """out[group, channel, pixel] = x[group, block, pixel, lane] of images or groups of C channels each, flat."""
    each_worker(start, workers, _change_layout, (out, x, C, pixels, False))


@inner
def _change_layout(worker, workers, nchw, blocked, C, pixels, to_blocked):
    vlen = lanes(nchw)
    blocks = (C + vlen - 1) // vlen
    begin, end = share(nchw.size // (C * pixels) * blocks, worker, workers, 1)
    for index in range(begin, end):
        group, block = divmod(index, blocks)
        count, i, j = min(vlen, C - block * vlen), (group * C + block * vlen) * pixels, index * pixels * vlen
        if to_blocked:
            transpose_matrix(nchw, i, pixels, blocked, j, vlen, count, pixels)
        else:
            transpose_matrix(blocked, j, vlen, nchw, i, pixels, pixels, count)


def blocks_of(C: int, dtype: Any) -> int:
    return -(-C // lanes_of(dtype))


PACK = Tiled(pack_weights, None)
TO_BLOCKED, FROM_BLOCKED = (Tiled(driver, None, recordable=True) for driver in (to_blocked, from_blocked))
