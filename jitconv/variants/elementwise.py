"""Arithmetic on a tile, lane by lane: + − · ÷, maximum, exp and log, in njit code.

`like` is a tile of the shape that is wanted, of one row; a lane's number is v.

    tile_size(like)                 how many numbers it holds
    broadcast(like, value)          the value in every lane
    load(like, array, i, n, fill)   array[i + v] for v < n, `fill` in the lanes from n on
    store(tile, array, i, n)        array[i + v] = tile[v] for v < n
    maximum(a, b)                   b where b > a, else a
    reduce_max(a), reduce_add(a)    the largest lane, and the sum of all lanes, in every lane
    exp(a)                          e^a within 1 ulp, below the normal numbers too; 0 at −∞, ∞ at ∞, NaN at NaN
    log(a)                          log a for finite a ≥ 1: within 2 ulp, or 2 eps below 1; NaN at NaN

As in simd.py, no index is checked.
"""

import math
import operator

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, lower_builtin, type_callable

from jitconv.variants.compiling import EXACT, inner
from jitconv.variants.simd import INDEX, INT, Code, Tile

# Of log 2: so many bits that its product with any exponent is exact, and the rest, of which math.log lacks the end.
LN2_BITS = {32: 15, 64: 41}
LN2_END = 2.3190468138462996e-17
SERIES_TERMS = {32: 7, 64: 13}  # of Σ rᵏ/k!, |r| ≤ log(2)/2: what is left out is below 0.15 ulp
RANGE = {32: (-104.5, 89.5), 64: (-746.0, 710.5)}  # beyond it e^a is 0 or ∞
MANTISSA, BIAS = {32: 23, 64: 52}, {32: 127, 64: 1023}


class _Lanes(Code):
    """Emits arithmetic on every register of a tile."""

    def __init__(self, context, builder, tile):
        super().__init__(context, builder, tile)
        self.bits = tile.dtype.bitwidth
        self.integer = ir.VectorType(ir.IntType(self.bits), tile.lanes)

    def vectors(self, value):
        return [self.get(value, register) for register in range(len(self.tile.registers))]

    def result(self, vectors):
        value = ir.Constant(self.context.get_value_type(self.tile), ir.Undefined)
        for register, vector in enumerate(vectors):
            value = self.set(value, register, vector)
        return value

    def branches(self, n):
        """Where n is no less than the tile's numbers, which needs no masks, and where it is."""
        numbers = len(self.tile.registers) * self.tile.lanes
        return self.builder.if_else(self.builder.icmp_signed(">=", n, ir.Constant(INDEX, numbers)), likely=True)

    def firsts(self):
        """The number of each register's first lane."""
        return [register * self.tile.lanes for register in range(len(self.tile.registers))]

    def number(self, value):
        return ir.Constant(self.tile.vector, [value] * self.tile.lanes)

    def whole(self, value):
        return ir.Constant(self.integer, [value] * self.tile.lanes)

    def maximum(self, a, b):
        return self.builder.select(self.builder.fcmp_ordered(">", b, a), b, a)

    def across(self, vectors, combine):
        vector = vectors[0]
        for other in vectors[1:]:
            vector = combine(vector, other)
        bit = self.tile.lanes // 2
        while bit:
            other = ir.Constant(ir.VectorType(INT, self.tile.lanes), [i ^ bit for i in range(self.tile.lanes)])
            vector = combine(vector, self.builder.shuffle_vector(vector, vector, other))
            bit //= 2
        return [vector] * len(vectors)

    def power_of_two(self, exponent):
        biased = self.builder.add(exponent, self.whole(BIAS[self.bits]))
        return self.builder.bitcast(self.builder.shl(biased, self.whole(MANTISSA[self.bits])), self.tile.vector)

    def exp(self, x):
        """2ᵏ·e^r with x = k·log 2 + r; 2ᵏ in two factors, because k reaches beyond the exponents of a number."""
        builder, (low, high) = self.builder, RANGE[self.bits]
        x = builder.select(builder.fcmp_ordered("<", x, self.number(low)), self.number(low), x)
        x = builder.select(builder.fcmp_ordered(">", x, self.number(high)), self.number(high), x)
        shift = self.number(1.5 * 2.0 ** MANTISSA[self.bits])  # a sum this large has k in its last bits
        shifted = self.fma(x, self.number(1 / math.log(2)), shift)
        k = builder.fsub(shifted, shift)
        head = round(math.log(2) * 2.0 ** LN2_BITS[self.bits]) / 2.0 ** LN2_BITS[self.bits]
        r = self.fma(k, self.number(-head), x)
        r = self.fma(k, self.number(-(math.log(2) - head + LN2_END)), r)
        power = self.number(1 / math.factorial(SERIES_TERMS[self.bits]))
        for term in reversed(range(SERIES_TERMS[self.bits])):
            power = self.fma(power, r, self.number(1 / math.factorial(term)))
        exponent = builder.sub(builder.bitcast(shifted, self.integer), builder.bitcast(shift, self.integer))
        half = builder.ashr(exponent, self.whole(1))
        power = builder.fmul(power, self.power_of_two(half))
        return builder.fmul(power, self.power_of_two(builder.sub(exponent, half)))

    def log(self, x):
        """Halley's steps for e^y = x, begun as if log were straight between powers of 2."""
        builder, unit = self.builder, 2.0 ** MANTISSA[self.bits]
        above_one = builder.sub(builder.bitcast(x, self.integer), self.whole(BIAS[self.bits] << MANTISSA[self.bits]))
        y = builder.fmul(builder.sitofp(above_one, self.tile.vector), self.number(math.log(2) / unit))
        for _ in range(self.bits // 32 + 1):  # from 0.06 to 2e-5, 5e-16 and below
            power = self.exp(y)
            change = builder.fdiv(builder.fsub(x, power), builder.fadd(x, power))
            y = builder.fadd(y, builder.fadd(change, change))
        return y


@intrinsic
def tile_size(typing, like):
    def code(context, builder, signature, args):
        return ir.Constant(INDEX, len(like.registers) * like.lanes)

    return types.intp(like), code


@intrinsic
def broadcast(typing, like, value):
    def code(context, builder, signature, args):
        emit = _Lanes(context, builder, like)
        return emit.result([emit.broadcast(context.cast(builder, args[1], value, like.dtype))] * len(like.registers))

    return like(like, value), code


@intrinsic
def load(typing, like, array, i, n, fill):
    def code(context, builder, signature, args):
        emit = _Lanes(context, builder, like)
        _, array_value, i_value, n_value, fill_value = args
        slots = [cgutils.alloca_once(builder, like.vector) for _ in like.registers]
        addresses = [emit.at(array, array_value, i_value, ir.Constant(INDEX, first)) for first in emit.firsts()]
        with emit.branches(n_value) as (whole, part):
            with whole:
                for slot, address in zip(slots, addresses, strict=True):
                    builder.store(emit.load(address), slot)
            with part:
                fills = emit.broadcast(context.cast(builder, fill_value, fill, like.dtype))
                for slot, address, first in zip(slots, addresses, emit.firsts(), strict=True):
                    loaded = emit.load(address, n_value, first)
                    builder.store(builder.select(emit.mask(n_value, first), loaded, fills), slot)
        return emit.result([builder.load(slot) for slot in slots])

    return like(like, array, types.intp, types.intp, fill), code


@intrinsic
def store(typing, tile, array, i, n):
    def code(context, builder, signature, args):
        emit = _Lanes(context, builder, tile)
        tile_value, array_value, i_value, n_value = args
        addresses = [emit.at(array, array_value, i_value, ir.Constant(INDEX, first)) for first in emit.firsts()]
        with emit.branches(n_value) as (whole, part):
            with whole:
                for vector, address in zip(emit.vectors(tile_value), addresses, strict=True):
                    emit.store(vector, address)
            with part:
                for vector, address, first in zip(emit.vectors(tile_value), addresses, emit.firsts(), strict=True):
                    emit.store(vector, address, n_value, first)
        return context.get_dummy_value()

    return types.void(tile, array, types.intp, types.intp), code


def _of_one(compute):
    """A function of a tile, without fast-math flags, which would undo the roundings that exp is made of."""

    @intrinsic
    def function(typing, tile):
        def code(context, builder, signature, args):
            emit = _Lanes(context, builder, tile)
            return emit.result(compute(emit, emit.vectors(args[0])))

        return tile(tile), code

    return inner(lambda tile: function(tile), fastmath=EXACT, forceinline=True)


exp = _of_one(lambda emit, vectors: [emit.exp(vector) for vector in vectors])
log = _of_one(lambda emit, vectors: [emit.log(vector) for vector in vectors])
reduce_max = _of_one(lambda emit, vectors: emit.across(vectors, emit.maximum))
reduce_add = _of_one(lambda emit, vectors: emit.across(vectors, emit.builder.fadd))


def _of_two(compute):
    """The code of a function of two tiles."""

    def code(context, builder, signature, args):
        emit = _Lanes(context, builder, signature.return_type)
        return emit.result([compute(emit, a, b) for a, b in zip(*map(emit.vectors, args), strict=True)])

    return code


@intrinsic
def maximum(typing, a, b):
    return a(a, b), _of_two(_Lanes.maximum)


def _operator(symbol, instruction):
    type_callable(symbol)(lambda context: lambda a, b: a if isinstance(a, Tile) and a == b else None)
    lower_builtin(symbol, Tile, Tile)(_of_two(lambda emit, a, b: getattr(emit.builder, instruction)(a, b)))


_operator(operator.add, "fadd")
_operator(operator.sub, "fsub")
_operator(operator.mul, "fmul")
_operator(operator.truediv, "fdiv")
