"""Winograd's minimal filtering F(m×m, 3×3): matrices from points, their code on vectors, the roundings they cost.

    y = Aᵀ [(G g Gᵀ) ⊙ (Bᵀ d B)] A        y: m × m outputs, g: 3 × 3 taps, d: (m + 2) × (m + 2) pixels

with (m + 2)² products instead of 9m². docs/equations.md derives the matrices, and the bound that holds for any input.
"""

import functools
from typing import NamedTuple

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from jitconv.variants.simd import INDEX, Code, Tile

# m: the points 0, ±t for each of these t, and ∞. Where t · 1/t are paired, numbers grow least.
POINTS = {2: (1.0,), 4: (2 / 3, 3 / 2)}
# m: the most roundings on a way through Bᵀ, G and Aᵀ, once; a constant that is no number of the dtype counts as one.
ROUNDINGS = {2: (1, 2, 2), 4: (3, 4, 3)}
TERMS = 64  # products that are added up on their own


class Matrices(NamedTuple):
    """Bᵀ: (m + 2, m + 2), G: (m + 2, 3), Aᵀ: (m, m + 2), float64."""

    input: np.ndarray
    weight: np.ndarray
    output: np.ndarray


@functools.cache
def matrices(m: int) -> Matrices:
    """The matrices of F(m, 3), by Lagrange's formula; the code below computes with the same, factored."""
    points = [0.0, *(sign * t for t in POINTS[m] for sign in (1, -1))]
    b, g = np.zeros((m + 2, m + 2)), np.zeros((m + 2, 3))
    for row, point in enumerate(points):
        others = [x for x in points if x != point]
        b[row, :-1] = np.poly(others)[::-1]  # Π (x − other), lowest power first
        g[row] = np.power(point, range(3)) / np.prod([point - x for x in others])
    b[-1], g[-1, -1] = np.poly(points)[::-1], 1
    a = [[*np.power(points, i), float(i == m - 1)] for i in range(m)]
    return Matrices(b, g, np.array(a))


def roundings(m: int, C: int) -> int:
    """The most roundings on a way from a pixel or a tap to an output: of transforms both ways, sums of C, and bias."""
    return 2 * sum(ROUNDINGS[m]) + min(C, TERMS) + -(-C // TERMS) - 1 + 1


class Transform(Code):
    """Emits Bᵀ, G and Aᵀ of one line of vectors: the points ±t share what is even and what is odd in t."""

    def __init__(self, context, builder, tile, m):
        super().__init__(context, builder, tile)
        self.m, self.points = m, POINTS[m]

    def number(self, value):
        return ir.Constant(self.tile.vector, [value] * self.tile.lanes)

    def scaled(self, value, x, total=None):
        """value · x + total"""
        if total is None:
            return x if value == 1 else self.builder.fmul(self.number(value), x)
        if value in (1, -1):
            return (self.builder.fadd if value == 1 else self.builder.fsub)(total, x)
        return self.fma(self.number(value), x, total)

    def combined(self, terms):
        """Σ value · x over pairs (value, x): those of 1 first, which need no product, the smallest last."""
        total = None
        for value, x in sorted(terms, key=lambda term: (term[0] != 1, -abs(term[0]))):
            total = self.scaled(value, x, total)
        return total

    def input(self, part, x):
        """Bᵀ x: ±t has x · (x ± t) · Π (x² − u²) over the other points u, 0 and ∞ have Π (x² − t²) over all."""
        t = self.points[part]
        others = np.atleast_1d(np.poly([u**2 for u in self.points if u != t]))[::-1]
        above = self.combined([(value, x(2 + 2 * i)) for i, value in enumerate(others)])
        below = self.combined([(value, x(1 + 2 * i)) for i, value in enumerate(others)])
        rows = {1 + 2 * part: self.scaled(t, below, above), 2 + 2 * part: self.scaled(-t, below, above)}
        every = np.poly([u**2 for u in self.points])[::-1]
        for end in self.ends(part):
            rows[end] = self.combined([(value, x((end > 0) + 2 * i)) for i, value in enumerate(every)])
        return rows

    def weight(self, part, x):
        """G x: ±t has (x₀ + t²·x₂) ± t·x₁, scaled."""
        g = matrices(self.m).weight
        scale = g[1 + 2 * part]
        even = self.scaled(scale[2], x(2), self.scaled(scale[0], x(0)))
        rows = {1 + 2 * part: self.scaled(scale[1], x(1), even), 2 + 2 * part: self.scaled(-scale[1], x(1), even)}
        for end in self.ends(part):
            rows[end] = x(2) if end > 0 else self.scaled(g[0, 0], x(0))
        return rows

    def ends(self, part):
        """The rows of 0 and ∞: one goes with the first pair of points, one with the last."""
        return [0] * (part == 0) + [self.m + 1] * (part == len(self.points) - 1)

    def output(self, part, x):
        """Aᵀ x: row i is Σ_t tⁱ·(x(t) ± x(−t)), and x(0) where i is 0, x(∞) where it is m − 1.

        Four rows are two parts, with sums in the one and differences in the other.
        """
        rows = {}
        for i in range(part, self.m, len(self.points)):
            merge = self.builder.fsub if i % 2 else self.builder.fadd
            terms = [(t**i, merge(x(1 + 2 * k), x(2 + 2 * k))) for k, t in enumerate(self.points)]
            ends = [x(0)] * (i == 0) + [x(self.m + 1)] * (i == self.m - 1)
            rows[i] = self.combined([*((1, end) for end in ends), *terms])
        return rows

    def square_at(self, array_type, array, start, row, column):
        """The address of vector (r, c) of a square in memory, as a function."""
        return lambda r, c: self.at(
            array_type, array, start, self.builder.mul(row, INDEX(r)), self.builder.mul(column, INDEX(c))
        )

    def reader(self, *square):
        address = self.square_at(*square)
        return lambda r, c: self.load(address(r, c))

    def writer(self, *square):
        address = self.square_at(*square)
        return lambda r, c, value: self.store(value, address(r, c))

    def both_ways(self, transform, size, load, store):
        """A transform down the columns of a square of `size`, then along its rows: parts of it need fewer registers."""
        parts = range(len(self.points))
        for part in parts:
            columns = [transform(part, functools.partial(load, c=c)) for c in range(size)]
            for r in columns[0]:
                row = [column[r] for column in columns]
                for c, value in (each for other in parts for each in transform(other, row.__getitem__).items()):
                    store(r, c, value)


def _square(kind):
    """An intrinsic: one transform of a square of vectors, from source[i + r·row + c·column …] to the same of target."""

    @intrinsic
    def square(typing, points, source, i, row, column, target, j, target_row, target_column):
        m = 2 * points.count

        def code(context, builder, signature, args):
            emit = Transform(context, builder, Tile(source.dtype, 1, 1), m)
            _, source_value, i_value, row_value, column_value, target_value, j_value, *target_lds = args
            load = emit.reader(source, source_value, i_value, row_value, column_value)
            store = emit.writer(target, target_value, j_value, *target_lds)
            emit.both_ways(getattr(emit, kind), 3 if kind == "weight" else m + 2, load, store)
            return context.get_dummy_value()

        numbers = (types.intp,) * 3
        return types.void(points, source, *numbers, target, *numbers), code

    return square


input_tile, weight_tile = _square("input"), _square("weight")


@intrinsic
def output_tile(typing, points, source, i, row, column, target, j, target_row, target_column, bias, k, low, high):
    """As the others, with bias[k …] added and kept in [low, high]; returns whether all was finite before."""
    m = 2 * points.count

    def code(context, builder, signature, args):
        tile = Tile(source.dtype, 1, 1)
        emit = Transform(context, builder, tile, m)
        _, source_value, i_value, row_value, column_value, target_value, j_value, *rest = args
        *target_lds, bias_value, k_value, low_value, high_value = rest
        start = emit.load(emit.at(bias, bias_value, k_value))
        low_value, high_value = emit.broadcast(low_value), emit.broadcast(high_value)
        load = emit.reader(source, source_value, i_value, row_value, column_value)
        write = emit.writer(target, target_value, j_value, *target_lds)
        zero, zeros = emit.number(0.0), []

        def store(r, c, value):
            zeros.append(emit.fma(value, zero, zeros[-1] if zeros else zero))  # 0, or NaN for ever
            value = builder.fadd(value, start)
            value = builder.select(builder.fcmp_ordered("<", value, low_value), low_value, value)
            write(r, c, builder.select(builder.fcmp_ordered(">", value, high_value), high_value, value))

        emit.both_ways(emit.output, m + 2, load, store)
        wrong = builder.fcmp_unordered("uno", zeros[-1], zeros[-1])
        return builder.icmp_unsigned("==", builder.bitcast(wrong, ir.IntType(tile.lanes)), ir.IntType(tile.lanes)(0))

    numbers = (types.intp,) * 3
    return types.boolean(points, source, *numbers, target, *numbers, bias, types.intp, source.dtype, source.dtype), code
