"""Pooling and arithmetic on blocked images, (N, C/lanes, H, W, lanes): a register holds the channels of one pixel.

A window is a range of rows and one of columns of the image: padding, strides and adaptive sizes are numbers of a table.
All are bound by memory, which they pass through once. What lies in the lanes after the last channel stays there.
"""

from functools import partial
from typing import Any

import numpy as np
from numba.extending import intrinsic

from jitconv.variants.compiling import inner
from jitconv.variants.elementwise import broadcast, load, store
from jitconv.variants.simd import Code, lanes, zeros
from jitconv.variants.tiled.activations import SIDE_BY_SIDE
from jitconv.variants.tiled.kernel import PARTS, Tiled
from jitconv.variants.tiled.microkernel import clamp
from jitconv.variants.tiled.product import share
from jitconv.variants.workers import each_worker


def windows(size: int, out_size: int, kernel: int, stride: int, padding: int, dilation: int) -> Any:
    """The first row (column) and the last + 1 of each window that lie in the image: (out_size, 2)."""
    first = np.arange(out_size) * stride - padding
    inside = np.maximum(0, -(first // dilation)) * dilation  # taps before the image are left out
    begin = np.where(first < 0, first + inside, first)
    return np.stack([begin, np.minimum(first + (kernel - 1) * dilation + 1, size)], 1)


def adaptive(size: int, out_size: int) -> Any:
    """The windows of adaptive pooling: from floor(i·size/out_size) to ceil((i + 1)·size/out_size)."""
    i = np.arange(out_size)
    return np.stack([i * size // out_size, -(-(i + 1) * size // out_size)], 1)


@intrinsic
def larger(typing, best, value):
    """value where it is larger, or NaN, else best."""

    def code(context, builder, signature, args):
        emit, result = Code(context, builder, best), args[0]
        for place in range(len(best.registers)):
            old, new = emit.get(args[0], place), emit.get(args[1], place)
            most = builder.select(builder.fcmp_ordered(">", new, old), new, old)  # one instruction; keeps an old NaN
            is_nan = builder.fcmp_unordered("uno", new, new)
            result = emit.set(result, place, builder.select(is_nan, new, most))
        return result

    return best(best, value), code


def _over_windows(window):
    """Fill `out` with window(x, where a plane begins, W, rows, columns, …) of each window's ranges.

    A line of all planes of an image before the next: so the lines that a worker reads are mostly those that it wrote
    as the worker of a convolution, and lie in its own core's cache.
    """

    @inner
    def walk(worker, workers, x, images, W, rows, columns, constants, out):
        lane, H_out, W_out = lanes(x), rows.shape[0], columns.shape[0]
        planes = out.size // (images * H_out * W_out * lane)
        plane = x.size // (images * planes)
        begin, end = share(images * H_out * planes, worker, workers, 1)
        for index in range(begin, end):
            line, p = divmod(index, planes)
            n, r = divmod(line, H_out)
            p += n * planes
            for c in range(W_out):
                some = (rows[r, 0], rows[r, 1]), (columns[c, 0], columns[c, 1])
                value = window(x, p * plane, W, some, constants, r * W_out + c)
                store(value, out, ((p * H_out + r) * W_out + c) * lane, lane)

    return walk


@partial(inner, forceinline=True)
def _largest_of_three(unit, x, at, lane):
    first, second, third = (
        load(unit, x, at, lane, 0),
        load(unit, x, at + lane, lane, 0),
        load(unit, x, at + 2 * lane, lane, 0),
    )
    return larger(larger(first, second), third)


@partial(inner, forceinline=True)
def maximum(x, plane, W, ranges, steps, index):
    """The largest number of a window: of the plane of lines of W registers that begins there; steps: between pixels."""
    (rows, columns), lane, unit = ranges, lanes(x), zeros(x, 1, 1)
    if rows[1] - rows[0] == 3 and columns[1] - columns[0] == 3 and steps == (1, 1):  # the usual one, without loops
        first, line = plane + (rows[0] * W + columns[0]) * lane, W * lane
        best = larger(_largest_of_three(unit, x, first, lane), _largest_of_three(unit, x, first + line, lane))
        return larger(best, _largest_of_three(unit, x, first + 2 * line, lane))
    best = broadcast(unit, -np.inf)  # which a window without a pixel has
    i = rows[0]
    while i < rows[1]:  # a range with a step would divide to count its numbers
        j = columns[0]
        while j < columns[1]:
            best = larger(best, load(unit, x, plane + (i * W + j) * lane, lane, 0))
            j += steps[1]
        i += steps[0]
    return best


@partial(inner, forceinline=True)
def _mean(x, plane, W, ranges, divisors, index):
    (rows, columns), lane, unit = ranges, lanes(x), zeros(x, 1, 1)
    total = broadcast(unit, 0)
    for i in range(rows[0], rows[1]):
        for j in range(columns[0], columns[1]):
            total = total + load(unit, x, plane + (i * W + j) * lane, lane, 0)
    return total / broadcast(unit, divisors[index])


_maxima, _means = _over_windows(maximum), _over_windows(_mean)


def max_pool2d(start, workers, x, images, W, rows, columns, steps, out):
    """out[plane, r, c] = max of x[plane, i, j] for i in rows[r] and j in columns[c], `steps` apart; images flat.

    W: the width of x's planes, of which each of the images has as many.
    """
    each_worker(start, workers, _maxima, (x, images, W, rows, columns, steps, out))


def avg_pool2d(start, workers, x, images, W, rows, columns, divisors, out):
    """out[plane, r, c] = Σ x[plane, i, j] / divisors[r · W_out + c], i in rows[r] and j in columns[c]; images flat."""
    each_worker(start, workers, _means, (x, images, W, rows, columns, divisors, out))


def affine(start, workers, x, scale, shift, pixels, low, high, out):
    """out[plane, pixel] = min(max(x · scale + shift, low), high), scale and shift of each channel; images flat."""
    each_worker(start, workers, _affine, (x, scale, shift, pixels, low, high, out))


@inner
def _affine(worker, workers, x, scale, shift, pixels, low, high, out):
    unit, lane = zeros(x, 1, 1), lanes(x)
    begin, end = share(x.size // (pixels * lane), worker, workers, 1)
    for plane in range(begin, end):
        channel = plane * lane % scale.size
        slope, offset = load(unit, scale, channel, lane, 0), load(unit, shift, channel, lane, 0)
        for i in range(plane * pixels * lane, (plane + 1) * pixels * lane, lane):
            store(clamp(load(unit, x, i, lane, 0) * slope + offset, low, high), out, i, lane)


def add(start, workers, x, y, low, high, out):
    """out[i] = min(max(x[i] + y[i], low), high); any layout, flat."""
    each_worker(start, workers, _add, (x, y, low, high, out))


@inner
def _add(worker, workers, x, y, low, high, out):
    unit = zeros(out, 1, SIDE_BY_SIDE)
    step = SIDE_BY_SIDE * lanes(out)
    begin, end = share(out.size, worker, workers, step)
    for i in range(begin, end, step):
        n = end - i
        store(clamp(load(unit, x, i, n, 0) + load(unit, y, i, n, 0), low, high), out, i, n)


def bound(start, workers, x, low, high, out):
    """out[i] = min(max(x[i], low), high); any layout, flat."""
    each_worker(start, workers, _bound, (x, low, high, out))


@inner
def _bound(worker, workers, x, low, high, out):
    unit = zeros(out, 1, SIDE_BY_SIDE)
    step = SIDE_BY_SIDE * lanes(out)
    begin, end = share(out.size, worker, workers, step)
    for i in range(begin, end, step):
        store(clamp(load(unit, x, i, end - i, 0), low, high), out, i, end - i)


def scale(start, workers, x, factors, pixels, out):
    """out[plane, pixel] = x · factors[plane], a register of lanes; images flat."""
    each_worker(start, workers, _scale, (x, factors, pixels, out))


@inner
def _scale(worker, workers, x, factors, pixels, out):
    unit, lane = zeros(x, 1, 1), lanes(x)
    begin, end = share(x.size // (pixels * lane), worker, workers, 1)
    for plane in range(begin, end):
        factor = load(unit, factors, plane * lane, lane, 0)
        for i in range(plane * pixels * lane, (plane + 1) * pixels * lane, lane):
            store(load(unit, x, i, lane, 0) * factor, out, i, lane)


MAX_POOL2D, AVG_POOL2D, AFFINE, ADD, CLAMP, SCALE = (
    Tiled(driver, None, recordable=True, parts=PARTS) for driver in (max_pool2d, avg_pool2d, affine, add, bound, scale)
)
