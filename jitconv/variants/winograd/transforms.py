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
BLOCK_TERMS = 64  # products that are added up on their own


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
    return 2 * sum(ROUNDINGS[m]) + min(C, BLOCK_TERMS) + -(-C // BLOCK_TERMS) - 1 + 1


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

    def input(self, subset, x):
        """Bᵀ x: ±t has x · (x ± t) · Π (x² − u²) over the other points u, 0 and ∞ have Π (x² − t²) over all."""
        t = self.points[subset]
        others = np.atleast_1d(np.poly([u**2 for u in self.points if u != t]))[::-1]
        above = self.combined([(value, x(2 + 2 * i)) for i, value in enumerate(others)])
        below = self.combined([(value, x(1 + 2 * i)) for i, value in enumerate(others)])
        rows = {1 + 2 * subset: self.scaled(t, below, above), 2 + 2 * subset: self.scaled(-t, below, above)}
        every = np.poly([u**2 for u in self.points])[::-1]
        for end in self.ends(subset):
            rows[end] = self.combined([(value, x((end > 0) + 2 * i)) for i, value in enumerate(every)])
        return rows

    def weight(self, subset, x):
        """G x: ±t has (x₀ + t²·x₂) ± t·x₁, scaled."""
        g = matrices(self.m).weight
        scale = g[1 + 2 * subset]
        even = self.scaled(scale[2], x(2), self.scaled(scale[0], x(0)))
        rows = {1 + 2 * subset: self.scaled(scale[1], x(1), even), 2 + 2 * subset: self.scaled(-scale[1], x(1), even)}
        for end in self.ends(subset):
            rows[end] = x(2) if end > 0 else self.scaled(g[0, 0], x(0))
        return rows

    def ends(self, subset):
        """The rows of 0 and ∞: one goes with the first pair of points, one with the last."""
        return [0] * (subset == 0) + [self.m + 1] * (subset == len(self.points) - 1)

    def output(self, subset, x):
        """Aᵀ x: row i is Σ_t tⁱ·(x(t) ± x(−t)), and x(0) where i is 0, x(∞) where it is m − 1.

        Four rows are two subsets: sums are in the one, differences in the other.
        """
        rows = {}
        for i in range(subset, self.m, len(self.points)):
            merge = self.builder.fsub if i % 2 else self.builder.fadd
            terms = [(t**i, merge(x(1 + 2 * k), x(2 + 2 * k))) for k, t in enumerate(self.points)]
            ends = [x(0)] * (i == 0) + [x(self.m + 1)] * (i == self.m - 1)
            rows[i] = self.combined([*((1, end) for end in ends), *terms])
        return rows

    def square(self, array_type, array, at):
        """The address of vector (r, c) of a Square of an array, as a function."""
        first, row, column = (self.builder.extract_value(at, i) for i in range(3))
        return lambda r, c: self.at(
            array_type, array, first, self.builder.mul(row, INDEX(r)), self.builder.mul(column, INDEX(c))
        )

    def both_ways(self, transform, size, load, store):
        """A transform down the columns of a square of `size`, then along its rows.

        A subset of the result's rows at a time, which needs fewer registers than all.
        """
        subsets = range(len(self.points))
        for subset in subsets:
            columns = [transform(subset, functools.partial(load, c=c)) for c in range(size)]
            for r in columns[0]:
                row = [column[r] for column in columns]
                for c, value in (each for other in subsets for each in transform(other, row.__getitem__).items()):
                    store(r, c, value)


class Square(NamedTuple):
    """Where the vectors of a square lie: (r, c) begins at first + r·row + c·column."""

    first: int
    row: int
    column: int


def _transform(kind):
    """An intrinsic: target, at its Square, = the transform of the square of vectors in source."""

    @intrinsic
    def transform(typing, points, source, source_at, target, target_at):
        m = 2 * points.count

        def code(context, builder, signature, args):
            emit = Transform(context, builder, Tile(source.dtype, 1, 1), m)
            load_from, store_to = emit.square(source, *args[1:3]), emit.square(target, *args[3:5])
            size = 3 if kind == "weight" else m + 2
            emit.both_ways(
                getattr(emit, kind),
                size,
                lambda r, c: emit.load(load_from(r, c)),
                lambda r, c, value: emit.store(value, store_to(r, c)),
            )
            return context.get_dummy_value()

        return types.void(points, source, source_at, target, target_at), code

    return transform


input_tile, weight_tile = _transform("input"), _transform("weight")


@intrinsic
def output_tile(typing, points, source, source_at, target, target_at, bias, k, limits):
    """As the others, with bias[k …] added, clamped to limits: (low, high); returns whether all was finite before."""
    m = 2 * points.count

    def code(context, builder, signature, args):
        tile = Tile(source.dtype, 1, 1)
        emit = Transform(context, builder, tile, m)
        load_from, store_to = emit.square(source, *args[1:3]), emit.square(target, *args[3:5])
        start = emit.load(emit.at(bias, *args[5:7]))
        low, high = (emit.broadcast(builder.extract_value(args[7], i)) for i in range(2))
        zero, zeros = emit.number(0.0), []

        def store(r, c, value):
            zeros.append(emit.fma(value, zero, zeros[-1] if zeros else zero))  # 0, or NaN for ever
            value = builder.fadd(value, start)
            value = builder.select(builder.fcmp_ordered("<", value, low), low, value)
            emit.store(builder.select(builder.fcmp_ordered(">", value, high), high, value), store_to(r, c))

        emit.both_ways(emit.output, m + 2, lambda r, c: emit.load(load_from(r, c)), store)
        overflow = builder.fcmp_unordered("uno", zeros[-1], zeros[-1])
        return builder.icmp_unsigned("==", builder.bitcast(overflow, ir.IntType(tile.lanes)), ir.IntType(tile.lanes)(0))

    return types.boolean(points, source, source_at, target, target_at, bias, types.intp, limits), code
