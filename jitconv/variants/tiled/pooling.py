"""max_pool2d on vector registers, and its gradient: 2×2 windows side by side, which memory bounds, and all others."""

import math
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from jitconv.variants.simd import INDEX, INT, Code, Tile, lanes
from jitconv.variants.tiled.product import NONE, ONE, clear, inner, share
from jitconv.variants.tiled.shifts import tap_columns
from jitconv.variants.workers import each_worker


def _largest(emit, values, distances, first):
    """The largest of four registers lane by lane, and its index: `first`, or so much further.

    Later numbers win only if larger, or NaN.
    """
    builder, best, index = emit.builder, values[0], first
    for value, distance in zip(values[1:], distances, strict=True):
        wins = builder.or_(builder.fcmp_ordered(">", value, best), builder.fcmp_unordered("uno", value, value))
        best = builder.select(wins, value, best)
        index = builder.select(wins, builder.add(first, distance), index)
    return best, index


def _distances(emit, W):
    """How much further than a window's first number the others are in a plane with lines of W."""
    right = ir.Constant(ir.VectorType(INDEX, emit.tile.lanes), [1] * emit.tile.lanes)
    below = emit.broadcast(W)
    return right, below, emit.builder.add(below, right)


def _store_indices(emit, index, address, n):
    pointer, lanes = emit.builder.bitcast(address, index.type.as_pointer()), emit.tile.lanes
    emit.call(f"llvm.masked.store.v{lanes}i64.p0", ir.VoidType(), index, pointer, ir.Constant(INT, 8), emit.mask(n, 0))


@intrinsic
def max_2x2(typing, x, i, W, first, out, o, indices, p, n):
    """out[o + v], indices[p + v]: the largest of x[i + 2v], x[i + 2v + 1] and the two below, and where in its plane.

    W is the width of a line, `first` the index of x[i] in the plane.
    """
    tile = Tile(x.dtype, 1, 1)

    def code(context, builder, signature, args):
        emit = Code(context, builder, tile)
        x_value, i_value, W_value, first_value, out_value, o_value, indices_value, p_value, n_value = args
        lanes, count = tile.lanes, builder.mul(n_value, ir.Constant(INDEX, 2))

        def line(start):
            addresses = [emit.at(x, x_value, start, ir.Constant(INDEX, k * lanes)) for k in (0, 1)]
            return emit.deinterleave(*(emit.load(address, count, k * lanes) for k, address in enumerate(addresses)))

        every_second = ir.Constant(ir.VectorType(INDEX, lanes), list(range(0, 2 * lanes, 2)))
        left = builder.add(emit.broadcast(first_value), every_second)
        values = line(i_value) + line(builder.add(i_value, W_value))
        best, index = _largest(emit, values, _distances(emit, W_value), left)
        emit.store(best, emit.at(out, out_value, o_value), n_value)
        _store_indices(emit, index, emit.at(indices, indices_value, p_value), n_value)
        return context.get_dummy_value()

    return types.void(x, *(types.intp,) * 3, out, types.intp, indices, types.intp, types.intp), code


@intrinsic
def store_largest(typing, tile, firsts, w, W, out, out_at, indices, indices_at, n):
    """out[o + r·ld + v], indices[p + r·indices_ld + v]: the largest of tile[r, 0 … 3], lane by lane, and where.

    out_at: (o, ld); indices_at: (p, indices_ld).

    The registers hold the four numbers of windows of 2×2; firsts[w + v] is the index of the first, W a line's width.
    """

    def code(context, builder, signature, args):
        emit = Code(context, builder, tile)
        total, firsts_value, w_value, W_value, out_value, out_at_value, indices_value, indices_at_value, n_value = args
        o_value, ld_value, p_value, indices_ld_value = (
            builder.extract_value(at, k) for at in (out_at_value, indices_at_value) for k in (0, 1)
        )
        pointer = ir.VectorType(INDEX, tile.lanes).as_pointer()
        first = builder.load(builder.bitcast(emit.at(firsts, firsts_value, w_value), pointer))
        first.align = 8
        distances = _distances(emit, W_value)
        for r in range(tile.rows):
            values = [emit.get(total, r * tile.vectors + v) for v in range(tile.vectors)]
            best, index = _largest(emit, values, distances, first)
            row, indices_row = (builder.mul(each, ir.Constant(INDEX, r)) for each in (ld_value, indices_ld_value))
            emit.store(best, emit.at(out, out_value, o_value, row), n_value)
            _store_indices(emit, index, emit.at(indices, indices_value, p_value, indices_row), n_value)
        return context.get_dummy_value()

    return types.void(tile, firsts, types.intp, types.intp, out, out_at, indices, indices_at, types.intp), code


@intrinsic
def spread_2x2(typing, grad, indices, o, n, W, first, out, i):
    """out[i + 2v], out[i + 2v + 1] and the two below: grad[o + v] where indices[o + v] says it came from, else 0.

    W is the width of a line, `first` the index of out[i] in its plane; v < n.
    """
    tile = Tile(grad.dtype, 1, 1)

    def code(context, builder, signature, args):
        emit = Code(context, builder, tile)
        grad_value, indices_value, o_value, n_value, W_value, first_value, out_value, i_value = args
        lanes, count = tile.lanes, builder.mul(n_value, ir.Constant(INDEX, 2))
        where, zero = ir.VectorType(INDEX, lanes), ir.Constant(tile.vector, None)
        value = emit.load(emit.at(grad, grad_value, o_value), n_value)
        pointer = builder.bitcast(emit.at(indices, indices_value, o_value), where.as_pointer())
        source = emit.call(
            f"llvm.masked.load.v{lanes}i64.p0", where,
            pointer, ir.Constant(INT, 8), emit.mask(n_value, 0), ir.Constant(where, None),
        )  # fmt: skip
        from_left = builder.sub(source, ir.Constant(where, list(range(0, 2 * lanes, 2))))
        for start, index in (
            (i_value, first_value),
            (builder.add(i_value, W_value), builder.add(first_value, W_value)),
        ):
            left, right = (
                builder.select(
                    builder.icmp_signed("==", from_left, emit.broadcast(builder.add(index, ir.Constant(INDEX, odd)))),
                    value,
                    zero,
                )
                for odd in (0, 1)
            )
            for k, half in enumerate(emit.interleave(left, right)):
                first_lane = k * lanes
                address = emit.at(out, out_value, start, ir.Constant(INDEX, first_lane))
                emit.store(half, address, count, first_lane)
        return context.get_dummy_value()

    return types.void(grad, indices, types.intp, types.intp, types.intp, types.intp, out, types.intp), code


@intrinsic
def no_maxima(typing, x):
    """−∞ in one register, and the index −1 in another."""
    tile = Tile(x.dtype, 1, 2)

    def code(context, builder, signature, args):
        emit, number = Code(context, builder, tile), ir.IntType(tile.dtype.bitwidth)
        total = ir.Constant(context.get_value_type(tile), ir.Undefined)
        total = emit.set(total, 0, ir.Constant(tile.vector, [-math.inf] * tile.lanes))
        none = ir.Constant(ir.VectorType(number, tile.lanes), [-1] * tile.lanes)
        return emit.set(total, 1, builder.bitcast(none, tile.vector))

    return tile(x), code


@intrinsic
def take_larger(typing, tile, x, i, step, first, begin, end):
    """The tile with x[i + v·step] and its index, first + v·step, where it is the first, or larger, or NaN.

    For begin ≤ v < end; step: 1 or 2, literally.
    """
    if not isinstance(step, types.IntegerLiteral):
        return None
    every = step.literal_value

    def code(context, builder, signature, args):
        emit, numbers = Code(context, builder, tile), ir.VectorType(ir.IntType(tile.dtype.bitwidth), tile.lanes)
        total, x_value, i_value, _, first_value, begin_value, end_value = args

        def among(first, begin, end):
            return builder.and_(emit.mask(end, first), builder.not_(emit.mask(begin, first)))

        def line(first):
            address = emit.at(x, x_value, i_value, ir.Constant(INDEX, first))
            pointer = builder.bitcast(address, tile.vector.as_pointer())
            mask = among(first, *(builder.mul(n, ir.Constant(INDEX, every)) for n in (begin_value, end_value)))
            if every == 2:  # not what follows the last number
                mask = builder.and_(mask, ir.Constant(mask.type, [v % 2 == 0 for v in range(tile.lanes)]))
            align, zero = ir.Constant(INT, tile.dtype.bitwidth // 8), ir.Constant(tile.vector, None)
            return emit.call(f"llvm.masked.load.{emit.suffix}.p0", tile.vector, pointer, align, mask, zero)

        value = line(0) if every == 1 else emit.deinterleave(line(0), line(tile.lanes))[0]
        best, index = emit.get(total, 0), builder.bitcast(emit.get(total, 1), numbers)
        here = builder.add(
            emit.broadcast(builder.trunc(first_value, numbers.element)),
            ir.Constant(numbers, [v * every for v in range(tile.lanes)]),
        )
        wins = builder.or_(builder.fcmp_ordered(">", value, best), builder.fcmp_unordered("uno", value, value))
        wins = builder.or_(wins, builder.icmp_signed("<", index, ir.Constant(numbers, [0] * tile.lanes)))
        wins = builder.and_(wins, among(0, begin_value, end_value))
        total = emit.set(total, 0, builder.select(wins, value, best))
        return emit.set(total, 1, builder.bitcast(builder.select(wins, here, index), tile.vector))

    return tile(tile, x, types.intp, step, *(types.intp,) * 3), code


@intrinsic
def store_maxima(typing, tile, out, o, indices, p, n):
    """out[o + v], indices[p + v]: the tile's maxima, and their indices."""

    def code(context, builder, signature, args):
        emit, number = Code(context, builder, tile), ir.IntType(tile.dtype.bitwidth)
        total, out_value, o_value, indices_value, p_value, n_value = args
        index = builder.bitcast(emit.get(total, 1), ir.VectorType(number, tile.lanes))
        emit.store(emit.get(total, 0), emit.at(out, out_value, o_value), n_value)
        if tile.dtype.bitwidth < INDEX.width:
            index = builder.sext(index, ir.VectorType(INDEX, tile.lanes))
        _store_indices(emit, index, emit.at(indices, indices_value, p_value), n_value)
        return context.get_dummy_value()

    return types.void(tile, out, types.intp, indices, types.intp, types.intp), code


def max_pool2d_of_any(start, workers, x, kernel_size, stride, padding, dilation, out, indices):
    """z[n, c, row, col] = max over the window, and its index, a register of columns at a time; for strides 1 and 2."""
    each_worker(start, workers, _any_windows, (x, kernel_size, stride, padding, dilation, out, indices))


@inner
def _any_windows(worker, workers, x, kernel_size, stride, padding, dilation, out, indices):
    (H, W), (H_out, W_out), (K_h, K_w), vlen = x.shape[2:], out.shape[2:], kernel_size, lanes(x)
    source, (maxima, flat_indices, index_step) = x.reshape(-1), results_of(out, indices)
    blocks = (W_out + vlen - 1) // vlen
    columns = tap_columns(K_w, stride[1], padding[1], dilation[1], W, W_out, vlen)
    begin, end = share(out.shape[0] * out.shape[1] * H_out, worker, workers, ONE)
    for index in range(begin * blocks, end * blocks):
        line, block = index // blocks, index % blocks
        plane, top, tile = line // H_out * H * W, line % H_out * stride[0] - padding[0], no_maxima(source)
        for m in range(top, top + K_h * dilation[0], dilation[0]):
            for j in range(block * K_w, block * K_w + K_w if 0 <= m < H else 0):
                at, first, last = m * W + columns[j, 0], columns[j, 1], columns[j, 2]
                if stride[1] == 1:
                    tile = take_larger(tile, source, plane + at, 1, at, first, last)
                else:
                    tile = take_larger(tile, source, plane + at, 2, at, first, last)
        o = line * W_out + block * vlen
        store_maxima(tile, maxima, o, flat_indices, o * index_step, W_out - block * vlen)


def max_pool2d(start, workers, x, kernel_size, stride, padding, dilation, out, indices):
    """z[n, c, row, col] = max over the window, and its index; for windows of 2×2, whole and side by side."""
    each_worker(start, workers, _windows, (x, out, indices))


@inner
def _windows(worker, workers, x, out, indices):
    (H, W), (H_out, W_out), source = x.shape[2:], out.shape[2:], x.reshape(-1)
    maxima, flat_indices, index_step = results_of(out, indices)
    begin, end = share(out.shape[0] * out.shape[1], worker, workers, ONE)
    for plane in range(begin, end):
        for row in range(H_out):
            for col in range(0, W_out, lanes(x)):
                i, o = 2 * row * W + 2 * col, (plane * H_out + row) * W_out + col
                max_2x2(source, plane * H * W + i, W, i, maxima, o, flat_indices, o * index_step, W_out - col)


class Results(NamedTuple):
    """Where maxima go, and their indices, `index_step` apart: 0 where nobody wants them."""

    maxima: Any
    indices: Any
    index_step: int


@inner
def results_of(out, indices):
    """The results of a pooling, flat; nobody wants indices of no size."""
    if indices.size > 0:
        return Results(out.reshape(-1), indices.reshape(-1), ONE)
    return Results(out.reshape(-1), np.empty(lanes(out), np.int64), NONE)


def spread_whole_windows(start, workers, grad, indices, kernel_size, stride, padding, dilation, out):
    """∂x = ∂z where the window's maximum was, 0 elsewhere; for windows of 2×2, whole and side by side."""
    each_worker(start, workers, _spread_adjacent, (grad, indices, out))


def spread_windows(start, workers, grad, indices, kernel_size, stride, padding, dilation, out):
    """∂x = Σ ∂z of the windows whose maximum was there, in rising order."""
    each_worker(start, workers, _spread_any, (grad, indices, out))


@inner
def _spread_adjacent(worker, workers, grad, indices, out):
    """Write every line of windows whole, and zeros to the line and the column that no window reaches."""
    (H, W), (H_out, W_out) = out.shape[2:], grad.shape[2:]
    source, flat_indices, target = grad.reshape(-1), indices.reshape(-1), out.reshape(-1)
    begin, end = share(out.shape[0] * out.shape[1], worker, workers, ONE)
    for plane in range(begin, end):
        for row in range(H_out):
            i, o = (plane * H + 2 * row) * W, (plane * H_out + row) * W_out
            for col in range(0, W_out, lanes(grad)):
                spread_2x2(source, flat_indices, o + col, W_out - col, W, 2 * row * W + 2 * col, target, i + 2 * col)
            clear(target, i + 2 * W_out, i + W)
            clear(target, i + W + 2 * W_out, i + 2 * W)
        clear(target, (plane * H + 2 * H_out) * W, (plane + 1) * H * W)


@inner
def _spread_any(worker, workers, grad, indices, out):
    size, windows = out.shape[2] * out.shape[3], grad.shape[2] * grad.shape[3]
    source, flat_indices, target = grad.reshape(-1), indices.reshape(-1), out.reshape(-1)
    begin, end = share(out.shape[0] * out.shape[1], worker, workers, ONE)
    for plane in range(begin, end):
        plane_grad = target[plane * size : (plane + 1) * size]
        clear(plane_grad, 0, size)
        for window in range(plane * windows, (plane + 1) * windows):
            index = flat_indices[window]
            if 0 <= index < size:
                plane_grad[index] += source[window]
