"""linear of one image, a matrix times a vector: bound by reading the weights once, which lie packed in that order.

packed: (O / WIDTH, I, WIDTH), the outputs in the lanes, so that all of it is one stream; the last outputs filled up.
"""

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from jitconv.variants.compiling import inner
from jitconv.variants.elementwise import broadcast, load, store
from jitconv.variants.simd import INDEX, Code, Tile, lanes, lanes_of, zeros
from jitconv.variants.tiled.kernel import PARTS, Tiled
from jitconv.variants.tiled.microkernel import clamp
from jitconv.variants.tiled.product import share
from jitconv.variants.workers import each_worker

INPUTS, OUTPUT_VECTORS = 4, 2  # inputs at once, each with sums of its own, and vectors of outputs
BLOCK_INPUTS = 144 * INPUTS  # inputs that are added up on their own


def pack(weight: Any) -> Any:
    """The weight (O, I) as the kernel reads it, flat."""
    O, I = weight.shape
    width = OUTPUT_VECTORS * lanes_of(weight.dtype)
    full = np.zeros((-(-O // width) * width, I), weight.dtype)
    full[:O] = weight
    return np.ascontiguousarray(full.reshape(-1, width, I).transpose(0, 2, 1)).reshape(-1)


@intrinsic
def fma_rows(typing, tile, x, p, w, i):
    """tile[r, v] += x[p + r] · w[i + (r·V + v)·lanes + lane]"""

    def code(context, builder, signature, args):
        emit = Code(context, builder, tile)
        total, x_value, p_value, w_value, i_value = args
        for register, (r, v) in enumerate(tile.registers):
            if v == 0:
                factor = emit.broadcast(builder.load(emit.at(x, x_value, p_value, ir.Constant(INDEX, r))))
            address = emit.at(w, w_value, i_value, ir.Constant(INDEX, register * tile.lanes))
            total = emit.set(total, register, emit.fma(factor, emit.load(address), emit.get(total, register)))
        return total

    return tile(tile, x, types.intp, w, types.intp), code


@intrinsic
def add_rows(typing, tile):
    """result[v] = Σ_r tile[r, v]"""
    row = Tile(tile.dtype, 1, tile.vectors)

    def code(context, builder, signature, args):
        emit = Code(context, builder, tile)
        result = ir.Constant(context.get_value_type(row), ir.Undefined)
        for v in range(tile.vectors):
            total = emit.get(args[0], v)
            for r in range(1, tile.rows):
                total = builder.fadd(total, emit.get(args[0], r * tile.vectors + v))
            result = emit.set(result, v, total)
        return result

    return row(tile), code


def gemv(start, workers, x, packed, bias, low, high, out):
    """out[o] = min(max(b[o] + Σ_i w[o, i] · x[i], low), high)"""
    each_worker(start, workers, _gemv, (x, packed, bias, low, high, out))


@inner
def _gemv(worker, workers, x, packed, bias, low, high, out):
    I, width = x.size, OUTPUT_VECTORS * lanes(x)
    unit = zeros(x, 1, OUTPUT_VECTORS)
    begin, end = share(out.size, worker, workers, width)
    for o in range(begin, end, width):
        total, at = load(unit, bias, o, end - o, 0), o * I
        for first in range(0, I, BLOCK_INPUTS):
            last = min(first + BLOCK_INPUTS, I)
            whole = first + (last - first) // INPUTS * INPUTS
            tile = zeros(x, INPUTS, OUTPUT_VECTORS)
            for p in range(first, whole, INPUTS):
                tile = fma_rows(tile, x, p, packed, at)
                at += INPUTS * width
            for p in range(whole, last):
                total = total + broadcast(unit, x[p]) * load(unit, packed, at, width, 0)
                at += width
            total = total + add_rows(tile)
        store(clamp(total, low, high), out, o, end - o)


GEMV = Tiled(gemv, None, recordable=True, parts=PARTS)
