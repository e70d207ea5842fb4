"""Vector registers for njit code: a block of them, a `Tile`, is one value that loops can hold and update.

LLVM is told to use vectors, instead of being trusted to find them; it turns them into AVX-512, AVX2, SSE or NEON
instructions. A tile has rows × vectors registers, each of `lanes` numbers. Written as loops over its numbers:

    tile = zeros(array, rows, vectors)                 all 0; dtype from the array
    tile = fma_outer(tile, a, i, ld, b, j, n)          tile[r, v] += a[i + r·ld] · b[j + v]
    tile = fma_outer_gather(tile, a, i, ld, b, starts, s, j)
                                                       tile[r, v] += a[i + r·ld] · b[starts[s + v] + j …]
    tile = fma_dots(tile, a, rows_at, b, columns_at, p, n)
        tile[r, c][lane] += a[rows_at[r] + p + lane] · b[columns_at[c] + p + lane]
    tile = load_add(tile, c, i, ld)                    tile[r, v] += c[i + r·ld + v]
    store(tile, c, i, ld, n)                           c[i + r·ld + v] = tile[r, v]
    accumulate(tile, c, i, ld, n)                      c[i + r·ld + v] += tile[r, v]
    prefetch(tile, c, i, ld)                           bring what `store` or `accumulate` will write into the cache
    reduce_lanes(tile, c)                              c[r·vectors + v] = Σ_lane tile[r, v][lane]
    copy_vector(a, i, b, j, n)                         b[j + v] = a[i + v], for one register
    copy_down(a, i, ld, b, j, b_ld, count)             b[j + m·b_ld + v] = a[i + m·ld + v] for m < count
    copy_every_second(a, i, b, j, n)                   b[j + v] = a[i + 2v]
    transpose(a, i, ld, b, j, b_ld, rows, columns)     b[j + c·b_ld + r] = a[i + r·ld + c], one register square

n: how many numbers to the right of a row's start may be touched, None for all. Nothing else is checked: an index
outside its array reads or writes outside it.
"""

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, models, register_model

from jitconv import compat

_TRIPLE, TARGET, FEATURES = compat.target()  # the processor that Numba compiles for: NUMBA_CPU_NAME or this one

REGISTER_BYTES = 64 if "+avx512f" in FEATURES else 32 if "+avx2" in FEATURES else 16  # bytes in a register
REGISTERS = 32 if REGISTER_BYTES == 64 or _TRIPLE.startswith(("aarch64", "arm64")) else 16
_ARM = _TRIPLE.startswith(("aarch64", "arm64"))
_PINNED = "w" if _ARM else {64: "v", 32: "x", 16: "x"}[REGISTER_BYTES] if "86" in _TRIPLE else None  # a vector register
MR, NR_VECTORS = (12, 2) if REGISTERS == 32 else (6, 2)  # of an outer-product tile: the rest holds the operands
DOT_ROWS, DOT_COLUMNS = (4, 5) if REGISTERS == 32 else (3, 3)  # of a dot-product tile
HALVES = TARGET == "znver4" and REGISTER_BYTES == 64  # multiplies a register half by half, so that loads keep up
CACHE_LINE, SECOND_LEVEL_CACHE = 64, 1 << 20  # bytes; a core's second level, about
TO_READ, TO_WRITE, SECOND_LEVEL, FIRST_LEVEL, DATA = 0, 1, 2, 3, 1  # what llvm.prefetch calls them

INT, INDEX = ir.IntType(32), ir.IntType(64)


def lanes_of(dtype: Any) -> int:
    """Return how many numbers of a dtype one register holds."""
    return REGISTER_BYTES // np.dtype(dtype).itemsize


class Tile(types.Type):
    def __init__(self, dtype: types.Float, rows: int, vectors: int) -> None:
        self.dtype, self.rows, self.vectors = dtype, rows, vectors
        self.lanes = REGISTER_BYTES * 8 // dtype.bitwidth
        self.vector = ir.VectorType(ir.FloatType() if dtype.bitwidth == 32 else ir.DoubleType(), self.lanes)
        self.registers = [(r, v) for r in range(rows) for v in range(vectors)]
        super().__init__(name=f"Tile({dtype}, {rows}, {vectors})")


@register_model(Tile)
class _TileModel(models.PrimitiveModel):
    def __init__(self, manager, tile):
        super().__init__(manager, tile, ir.ArrayType(tile.vector, tile.rows * tile.vectors))


class Code:
    """Emits the instructions of one intrinsic."""

    def __init__(self, context, builder, tile):
        self.context, self.builder, self.tile = context, builder, tile
        self.suffix = f"v{tile.lanes}f{tile.dtype.bitwidth}"

    def at(self, array_type, array, *offsets):
        """The address of array[sum(offsets)], of an array or a pointer."""
        data = array
        if isinstance(array_type, types.Array):
            data = self.context.make_array(array_type)(self.context, self.builder, array).data
        index = offsets[0]
        for offset in offsets[1:]:
            index = self.builder.add(index, offset)
        return self.builder.gep(data, [index])

    def call(self, name, result, *args, **options):
        function_type = ir.FunctionType(result, [arg.type for arg in args])
        return self.builder.call(
            cgutils.get_or_insert_function(self.builder.module, function_type, name), args, **options
        )

    def mask(self, n, first):
        """Which lanes stand for the numbers first, first + 1, … below n."""
        stop = first + self.tile.lanes
        n = self.builder.select(self.builder.icmp_signed("<", n, ir.Constant(INDEX, stop)), n, ir.Constant(INDEX, stop))
        numbers = ir.Constant(ir.VectorType(INT, self.tile.lanes), list(range(first, stop)))
        return self.builder.icmp_signed("<", numbers, self.broadcast(self.builder.trunc(n, INT)))

    def broadcast(self, value):
        vector = ir.VectorType(value.type, self.tile.lanes)
        one = self.builder.insert_element(ir.Constant(vector, ir.Undefined), value, ir.Constant(INT, 0))
        every = ir.Constant(ir.VectorType(INT, self.tile.lanes), None)
        return self.builder.shuffle_vector(one, ir.Constant(vector, ir.Undefined), every)

    def prefetch(self, address, access, level):
        hints = (ir.Constant(INT, hint) for hint in (access, level, DATA))
        self.call("llvm.prefetch.p0", ir.VoidType(), address, *hints)

    def _vector_at(self, address):
        return self.builder.bitcast(address, self.tile.vector.as_pointer())

    def load(self, address, n=None, first=0):
        pointer = self._vector_at(address)
        align = self.tile.dtype.bitwidth // 8
        if n is None:
            value = self.builder.load(pointer)
            value.align = align
            return value
        zero = ir.Constant(self.tile.vector, None)
        name = f"llvm.masked.load.{self.suffix}.p0"
        return self.call(name, self.tile.vector, pointer, ir.Constant(INT, align), self.mask(n, first), zero)

    def store(self, value, address, n=None, first=0):
        pointer = self._vector_at(address)
        align = self.tile.dtype.bitwidth // 8
        if n is None:
            self.builder.store(value, pointer).align = align
            return
        name = f"llvm.masked.store.{self.suffix}.p0"
        self.call(name, ir.VoidType(), value, pointer, ir.Constant(INT, align), self.mask(n, first))

    def fma(self, a, b, c):
        return self.call(f"llvm.fmuladd.{self.suffix}", self.tile.vector, a, b, c)

    def swap(self, a, b, bit):
        """Exchange the lanes of `a` whose number has the bit with those of `b` that lack it.

        Once for every bit, over all pairs of as many registers as they have lanes, this transposes them.
        """
        number, numbers = ir.VectorType(INT, self.tile.lanes), range(self.tile.lanes)
        lower = ir.Constant(number, [self.tile.lanes + i - bit if i & bit else i for i in numbers])
        upper = ir.Constant(number, [self.tile.lanes + i if i & bit else i + bit for i in numbers])
        return self.builder.shuffle_vector(a, b, lower), self.builder.shuffle_vector(a, b, upper)

    def interleave(self, a, b):
        """The lanes of `a` and `b` alternating, as two registers."""
        number, lanes = ir.VectorType(INT, self.tile.lanes), self.tile.lanes
        order = [i // 2 + i % 2 * lanes for i in range(2 * lanes)]
        return [self.builder.shuffle_vector(a, b, ir.Constant(number, part)) for part in (order[:lanes], order[lanes:])]

    def deinterleave(self, a, b):
        """The lanes of `a` and then of `b` with even numbers, and those with odd ones, as two registers."""
        number, lanes = ir.VectorType(INT, self.tile.lanes), self.tile.lanes
        return [
            self.builder.shuffle_vector(a, b, ir.Constant(number, list(range(odd, 2 * lanes, 2)))) for odd in (0, 1)
        ]

    def add_outer(self, total, address, ld, row):
        """The tile with the numbers at the address, `ld` apart, times the registers of a row added."""
        for r in range(self.tile.rows):
            factor = self.broadcast(self.builder.load(address))
            address = self.builder.gep(address, [ld])  # r · ld at once: LLVM would load all first, and spill
            for v in range(self.tile.vectors):
                register = r * self.tile.vectors + v
                total = self.set(total, register, self.pinned(self.fma(factor, row[v], self.get(total, register))))
        return total

    def pinned(self, vector):
        """The vector, computed before anything that follows is loaded: LLVM would load ahead, run out of registers

        and spill. It is an empty piece of assembly that claims to change the register, and all memory.
        """
        if _PINNED is None:
            return vector
        kind = ir.FunctionType(vector.type, [vector.type])
        return self.builder.call(ir.InlineAsm(kind, "", f"={_PINNED},0,~{{memory}}", side_effect=True), [vector])

    def unforeseen(self, number):
        """The number, of which nothing is computed earlier: LLVM would do so before a loop, whatever way that takes."""
        if _PINNED is None:
            return number
        kind = ir.FunctionType(number.type, [number.type])
        return self.builder.call(ir.InlineAsm(kind, "", "=r,0", side_effect=True), [number])

    def below(self, i, stop, count):
        """`count` if i < stop, else 0."""
        inside = self.builder.icmp_signed("<", ir.Constant(INDEX, i), stop)
        return self.builder.select(inside, count, ir.Constant(INDEX, 0))

    def get(self, tile, register):
        return self.builder.extract_value(tile, register)

    def set(self, tile, register, vector):
        return self.builder.insert_value(tile, vector, register)


def _count(n_type, n):
    return None if isinstance(n_type, types.NoneType) else n


@intrinsic
def lanes(typing, array):
    """The numbers in one register of the array's dtype."""

    def code(context, builder, signature, args):
        return ir.Constant(INDEX, REGISTER_BYTES * 8 // signature.args[0].dtype.bitwidth)

    return types.intp(array), code


@intrinsic
def pointer(typing, array):
    """Where an array's numbers begin: p[i] is read without a check, and no references are counted.

    The calls that count an array's references would store all registers of a tile around them.
    """

    def code(context, builder, signature, args):
        return context.make_array(array)(context, builder, args[0]).data

    return types.CPointer(array.dtype)(array), code


@intrinsic
def zeros(typing, array, rows, vectors):
    if not isinstance(rows, types.IntegerLiteral) or not isinstance(vectors, types.IntegerLiteral):
        return None
    tile = Tile(array.dtype, rows.literal_value, vectors.literal_value)

    def code(context, builder, signature, args):
        return ir.Constant(context.get_value_type(tile), None)

    return tile(array, rows, vectors), code


@intrinsic
def fma_outer(typing, tile, a, i, ld, b, j, n):
    """tile[r, v] += a[i + r·ld] · b[j + v]: a loaded number takes part in a row or a column of multiply-adds."""

    def code(context, builder, signature, args):
        emit = Code(context, builder, tile)
        total, a_value, i_value, ld_value, b_value, j_value, n_value = args
        n_value = _count(n, n_value)
        step = [ir.Constant(INDEX, v * tile.lanes) for v in range(tile.vectors)]
        row = [emit.load(emit.at(b, b_value, j_value, step[v]), n_value, v * tile.lanes) for v in range(tile.vectors)]
        return emit.add_outer(total, emit.at(a, a_value, i_value), ld_value, row)

    return tile(tile, a, types.intp, types.intp, b, types.intp, n), code


@intrinsic
def fma_outer_gather(typing, tile, a, i, ld, b, starts, s, j):
    """tile[r, v] += a[i + r·ld] · b[starts[s + v] + j …]: as `fma_outer`, with registers from different places."""

    def code(context, builder, signature, args):
        emit = Code(context, builder, tile)
        total, a_value, i_value, ld_value, b_value, starts_value, s_value, j_value = args
        addresses = [emit.at(starts, starts_value, s_value, ir.Constant(INDEX, v)) for v in range(tile.vectors)]
        row = [emit.load(emit.at(b, b_value, builder.load(address), j_value)) for address in addresses]
        return emit.add_outer(total, emit.at(a, a_value, i_value), ld_value, row)

    return tile(tile, a, types.intp, types.intp, b, starts, types.intp, types.intp), code


@intrinsic
def fma_dots(typing, tile, a, rows_at, b, columns_at, p, n):
    """tile[r, c] += a[rows_at[r] + p …] · b[columns_at[c] + p …], lane by lane."""

    def code(context, builder, signature, args):
        emit = Code(context, builder, tile)
        total, a_value, rows_value, b_value, columns_value, p_value, n_value = args
        n_value = _count(n, n_value)

        def vectors(array, value, table, offsets, count):
            starts = [builder.load(emit.at(table, offsets, ir.Constant(INDEX, k))) for k in range(count)]
            return [emit.load(emit.at(array, value, start, p_value), n_value) for start in starts]

        left = vectors(a, a_value, rows_at, rows_value, tile.rows)
        right = vectors(b, b_value, columns_at, columns_value, tile.vectors)
        for register, (r, c) in enumerate(tile.registers):
            total = emit.set(total, register, emit.fma(left[r], right[c], emit.get(total, register)))
        return total

    return tile(tile, a, rows_at, b, columns_at, types.intp, n), code


def _write(added):
    def write(typing, tile, c, i, ld, n):
        def code(context, builder, signature, args):
            emit = Code(context, builder, tile)
            total, c_value, i_value, ld_value, n_value = args
            n_value = _count(n, n_value)
            for register, (r, v) in enumerate(tile.registers):
                first = v * tile.lanes
                row = builder.mul(ld_value, ir.Constant(INDEX, r))
                address = emit.at(c, c_value, i_value, row, ir.Constant(INDEX, first))
                value = emit.get(total, register)
                if added:
                    value = builder.fadd(emit.load(address, n_value, first), value)
                emit.store(value, address, n_value, first)
            return context.get_dummy_value()

        return types.void(tile, c, types.intp, types.intp, n), code

    return intrinsic(write)


accumulate = _write(added=True)
store = _write(added=False)


@intrinsic
def load_add(typing, tile, c, i, ld):
    """tile[r, v] += c[i + r·ld + v]"""

    def code(context, builder, signature, args):
        emit = Code(context, builder, tile)
        total, c_value, i_value, ld_value = args
        for register, (r, v) in enumerate(tile.registers):
            row = builder.mul(ld_value, ir.Constant(INDEX, r))
            address = emit.at(c, c_value, i_value, row, ir.Constant(INDEX, v * tile.lanes))
            total = emit.set(total, register, builder.fadd(emit.get(total, register), emit.load(address)))
        return total

    return tile(tile, c, types.intp, types.intp), code


@intrinsic
def prefetch(typing, tile, c, i, ld):
    """Ask for the cache lines of c[i + r·ld + v], which `accumulate` or `store` will need when the tile is done."""

    def code(context, builder, signature, args):
        emit = Code(context, builder, tile)
        _, c_value, i_value, ld_value = args
        for r, v in tile.registers:
            row = builder.mul(ld_value, ir.Constant(INDEX, r))
            address = emit.at(c, c_value, i_value, row, ir.Constant(INDEX, v * tile.lanes))
            emit.prefetch(address, TO_WRITE, FIRST_LEVEL)
        return context.get_dummy_value()

    return types.void(tile, c, types.intp, types.intp), code


@intrinsic
def copy_vector(typing, source, i, target, j, n):
    """target[j + v] = source[i + v], for one register."""
    tile = Tile(source.dtype, 1, 1)

    def code(context, builder, signature, args):
        emit = Code(context, builder, tile)
        source_value, i_value, target_value, j_value, n_value = args
        n_value = _count(n, n_value)
        value = emit.load(emit.at(source, source_value, i_value), n_value)
        emit.store(value, emit.at(target, target_value, j_value), n_value)
        return context.get_dummy_value()

    return types.void(source, types.intp, target, types.intp, n), code


@intrinsic
def copy_down(typing, source, i, ld, target, j, target_ld, count):
    """target[j + m · target_ld + v] = source[i + m · ld + v] for m < count, a register of each line."""
    tile = Tile(source.dtype, 1, 1)

    def code(context, builder, signature, args):
        emit = Code(context, builder, tile)
        source_value, i_value, ld_value, target_value, j_value, target_ld_value, count_value = args
        with cgutils.for_range(builder, count_value) as line:
            here, there = builder.mul(line.index, ld_value), builder.mul(line.index, target_ld_value)
            # Not pinned, LLVM would unroll this by eight, and keep the sixteen addresses on the stack.
            value = emit.pinned(emit.load(emit.at(source, source_value, i_value, here)))
            emit.store(value, emit.at(target, target_value, j_value, there))
        return context.get_dummy_value()

    return types.void(source, *(types.intp,) * 2, target, *(types.intp,) * 3), code


@intrinsic
def copy_every_second(typing, source, i, target, j, n):
    """target[j + v] = source[i + 2v] for v < n, at most one register; pinned as in copy_down."""
    tile = Tile(source.dtype, 1, 1)

    def code(context, builder, signature, args):
        emit = Code(context, builder, tile)
        source_value, i_value, target_value, j_value, n_value = args
        count = builder.sub(builder.mul(n_value, ir.Constant(INDEX, 2)), ir.Constant(INDEX, 1))
        halves = [
            emit.load(emit.at(source, source_value, i_value, ir.Constant(INDEX, first)), count, first)
            for first in (0, tile.lanes)
        ]
        value = emit.pinned(emit.deinterleave(*halves)[0])
        emit.store(value, emit.at(target, target_value, j_value), n_value)
        return context.get_dummy_value()

    return types.void(source, types.intp, target, types.intp, types.intp), code


@intrinsic
def reduce_lanes(typing, tile, c):
    """c[r·vectors + v] = Σ_lane tile[r, v][lane]; c has room for whole registers."""

    def code(context, builder, signature, args):
        emit = Code(context, builder, tile)
        for first in range(0, len(tile.registers), tile.lanes):
            group = range(first, min(first + tile.lanes, len(tile.registers)))
            rows = dict(enumerate(emit.get(args[0], register) for register in group))
            bit = tile.lanes // 2
            while bit:  # rows become columns, which are added as soon as they are apart
                for r in [r for r in rows if not r & bit]:
                    lower, upper = emit.swap(rows[r], rows.pop(r | bit, rows[r]), bit)
                    rows[r] = builder.fadd(lower, upper)
                bit //= 2
            emit.store(rows[0], emit.at(c, args[1], ir.Constant(INDEX, first)))
        return context.get_dummy_value()

    return types.void(tile, c), code


@intrinsic
def transpose(typing, a, i, ld, b, j, b_ld, rows, columns):
    """b[j + c·b_ld + r] = a[i + r·ld + c] for r < rows and c < columns, at most `lanes` of each; None: all of both."""
    tile = Tile(a.dtype, 1, 1)

    def code(context, builder, signature, args):
        emit = Code(context, builder, tile)
        a_value, i_value, ld_value, b_value, j_value, b_ld_value, rows_value, columns_value = args
        numbers = range(tile.lanes)
        starts = [builder.mul(ld_value, ir.Constant(INDEX, r)) for r in numbers]
        whole = isinstance(rows, types.NoneType)

        def count(k, some, others):
            return None if whole else emit.below(k, some, others)

        vectors = [
            emit.load(emit.at(a, a_value, i_value, starts[r]), count(r, rows_value, columns_value)) for r in numbers
        ]
        bit = tile.lanes // 2
        while bit:
            for r in [r for r in numbers if not r & bit]:
                vectors[r], vectors[r | bit] = emit.swap(vectors[r], vectors[r | bit], bit)
            bit //= 2
        for c in numbers:
            start = builder.mul(b_ld_value, ir.Constant(INDEX, c))
            emit.store(vectors[c], emit.at(b, b_value, j_value, start), count(c, columns_value, rows_value))
        return context.get_dummy_value()

    counts = (rows, columns) if isinstance(rows, types.NoneType) else (types.intp,) * 2
    return types.void(a, *(types.intp,) * 2, b, *(types.intp,) * 2, *counts), code
