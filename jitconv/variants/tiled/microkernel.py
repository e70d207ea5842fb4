"""The register tile of a blocked convolution: some pixels of a line × some vectors of output channels.

A `TileShape` is an argument whose type carries the tile's constants, so that one driver is compiled once for each.
Row r of a tile is pixel r, and its registers are that pixel's output channels:

    ld = x_ld_of(shape, ld), out_ld_of(shape, ld)           the shape's constant, or ld where it has none
    tile = zeros_of(shape, array)                           all 0; dtype from the array
    tile = channels_of(shape, b, j)                         tile[r, v] = b[j + v]
    tile = fma_pixels(shape, tile, x, i, ld, w, j, above, below)
        tile[r, v] += x[i + r·ld] · w[j + v]                for all rows but so many first and last ones (literal)
    tile = fma_vectors(shape, tile, x, i, ld, w, j, vector_ld)
        tile[r, v] += x[i + r·ld] · w[j + v·vector_ld …]    whose vectors do not lie side by side
    tile = fma_some_pixels(shape, tile, x, i, ld, w, j, first, last)
        the same for first ≤ r < last
    tile = load_add_pixels(tile, c, i, ld, vector_ld, n)    tile[r, v] += c[i + r·ld + v·vector_ld …] for r < n
    store_pixels(tile, c, i, ld, vector_ld, n)              c[i + r·ld + v·vector_ld …] = tile[r, v] for r < n
    prefetch_pixels(tile, c, i, ld, vector_ld)              bring what `store_pixels` will write into the cache
    tile = clamp(tile, low, high)                           min(max(tile, low), high); NaN stays NaN
    prefetch_line(array, i)                                 bring array[i], to be read, into the second-level cache

Of a depthwise shape, x[i + r·ld …] is a register, one number for each lane. As in simd.py, no index is checked.
1 ≤ n: rows beyond n take the address of the last row before it, and are overwritten by that row: without branches
LLVM keeps the tile in registers.
"""

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import NativeValue, intrinsic, models, register_model, unbox

from jitconv.variants.simd import FIRST_LEVEL, INDEX, SECOND_LEVEL, TO_READ, TO_WRITE, Code, Tile


class _TileShapeType(types.Opaque):
    def __init__(self, pixels, vectors, depthwise, x_ld, out_ld):
        self.pixels, self.vectors, self.depthwise, self.x_ld, self.out_ld = pixels, vectors, depthwise, x_ld, out_ld
        super().__init__(name=f"TileShape({pixels}, {vectors}, {depthwise}, {x_ld}, {out_ld})")


class TileShape:
    """pixels × vectors registers; depthwise: each output channel reads the input channel of its own lane.

    x_ld, out_ld: numbers from a pixel to the next, where they are constants: addresses then take no instructions.
    """

    def __init__(
        self, pixels: int, vectors: int, depthwise: bool = False, x_ld: int | None = None, out_ld: int | None = None
    ) -> None:
        self.pixels, self.vectors, self.depthwise, self.x_ld, self.out_ld = pixels, vectors, depthwise, x_ld, out_ld
        # which Numba need not look up at each call
        self._numba_type_ = _TileShapeType(pixels, vectors, depthwise, x_ld, out_ld)


register_model(_TileShapeType)(models.OpaqueModel)


@unbox(_TileShapeType)
def _unbox_shape(kind, value, context):
    return NativeValue(context.context.get_dummy_value())


class _Pixels(Code):
    """Emits what is done to the rows of a tile."""

    def channels(self, array_type, array, j):
        """The registers of array[j + v]."""
        step = self.tile.lanes
        addresses = (self.at(array_type, array, j, ir.Constant(INDEX, v * step)) for v in range(self.tile.vectors))
        return [self.load(address) for address in addresses]

    def row(self, total, r):
        return [self.get(total, r * self.tile.vectors + v) for v in range(self.tile.vectors)]

    def with_row(self, total, r, row):
        for v, vector in enumerate(row):
            total = self.set(total, r * self.tile.vectors + v, vector)
        return total

    def multiplied(self, row, address, weights, depthwise):
        factor = self.load(address) if depthwise else self.broadcast(self.builder.load(address))
        return [self.pinned(self.fma(factor, *pair)) for pair in zip(weights, row, strict=True)]

    def where(self, inside, row, change):
        """The registers of a row, changed where `inside` is true, of which nothing is computed elsewhere."""
        slots = [cgutils.alloca_once(self.builder, self.tile.vector) for _ in row]
        for slot, vector in zip(slots, row, strict=True):
            self.builder.store(vector, slot)
        with self.builder.if_then(inside):
            for slot, vector in zip(slots, change(row), strict=True):
                self.builder.store(vector, slot)
        return [self.builder.load(slot) for slot in slots]

    def addresses(self, array_type, array, i, ld, vector_ld):
        """For each row, where its registers lie in an array: functions, because their code belongs where it is used."""
        builder = self.builder

        def of_row(r):
            row = builder.add(i, builder.mul(ir.Constant(INDEX, r), ld))
            return self.vector_addresses(array_type, array, row, vector_ld)

        return of_row

    def vector_addresses(self, array_type, array, i, vector_ld):
        """The addresses of a row's registers, array[i + v·vector_ld]."""
        offsets = (self.builder.mul(ir.Constant(INDEX, v), vector_ld) for v in range(self.tile.vectors))
        return [self.at(array_type, array, i, offset) for offset in offsets]

    def is_whole(self, n):
        """Whether all rows are meant, whose addresses then need no choice."""
        return self.builder.icmp_signed(">=", n, ir.Constant(INDEX, self.tile.rows))

    def moved(self, addresses, ld):
        return [self.builder.gep(address, [ld]) for address in addresses]


@intrinsic
def vectors_of(typing, shape):
    return types.intp(shape), lambda context, builder, signature, args: ir.Constant(INDEX, shape.vectors)


@intrinsic
def x_ld_of(typing, shape, ld):
    return types.intp(shape, types.intp), lambda *code: _constant_or(shape.x_ld, *code)


@intrinsic
def out_ld_of(typing, shape, ld):
    return types.intp(shape, types.intp), lambda *code: _constant_or(shape.out_ld, *code)


def _constant_or(constant, context, builder, signature, args):
    return args[1] if constant is None else ir.Constant(INDEX, constant)


@intrinsic
def zeros_of(typing, shape, array):
    tile = Tile(array.dtype, shape.pixels, shape.vectors)

    def code(context, builder, signature, args):
        return ir.Constant(context.get_value_type(tile), None)

    return tile(shape, array), code


@intrinsic
def channels_of(typing, shape, b, j):
    tile = Tile(b.dtype, shape.pixels, shape.vectors)

    def code(context, builder, signature, args):
        emit = _Pixels(context, builder, tile)
        total, row = ir.Constant(context.get_value_type(tile), ir.Undefined), emit.channels(b, *args[1:])
        for r in range(tile.rows):
            total = emit.with_row(total, r, row)
        return total

    return tile(shape, b, types.intp), code


@intrinsic
def fma_pixels(typing, shape, tile, x, i, ld, w, j, above, below):
    if not (isinstance(above, types.IntegerLiteral) and isinstance(below, types.IntegerLiteral)):
        return None
    inside = range(above.literal_value, tile.rows - below.literal_value)

    def code(context, builder, signature, args):
        emit = _Pixels(context, builder, tile)
        _, total, x_value, i_value, ld_value, w_value, j_value, *_ = args
        weights, address = emit.channels(w, w_value, j_value), emit.at(x, x_value, i_value)
        for r in range(tile.rows):
            if r in inside:
                row = emit.multiplied(emit.row(total, r), address, weights, shape.depthwise)
                total = emit.with_row(total, r, row)
            address = builder.gep(address, [ld_value])
        return total

    return tile(shape, tile, x, types.intp, types.intp, w, types.intp, above, below), code


@intrinsic
def fma_vectors(typing, shape, tile, x, i, ld, w, j, vector_ld):
    def code(context, builder, signature, args):
        emit = _Pixels(context, builder, tile)
        _, total, x_value, i_value, ld_value, w_value, j_value, vector_ld_value = args
        weights = [emit.load(address) for address in emit.vector_addresses(w, w_value, j_value, vector_ld_value)]
        address = emit.at(x, x_value, i_value)
        for r in range(tile.rows):
            total = emit.with_row(total, r, emit.multiplied(emit.row(total, r), address, weights, False))
            address = builder.gep(address, [ld_value])
        return total

    return tile(shape, tile, x, types.intp, types.intp, w, types.intp, types.intp), code


@intrinsic
def fma_some_pixels(typing, shape, tile, x, i, ld, w, j, first, last):
    def code(context, builder, signature, args):
        emit = _Pixels(context, builder, tile)
        _, total, x_value, i_value, ld_value, w_value, j_value, first_value, last_value = args
        weights, address = emit.channels(w, w_value, j_value), emit.at(x, x_value, i_value)
        for r in range(tile.rows):
            from_first = builder.icmp_signed("<=", first_value, ir.Constant(INDEX, r))
            before_last = builder.icmp_signed("<", ir.Constant(INDEX, r), last_value)
            inside = builder.and_(from_first, before_last)

            def change(row, address=address):
                return emit.multiplied(row, address, weights, shape.depthwise)

            total = emit.with_row(total, r, emit.where(inside, emit.row(total, r), change))
            address = builder.gep(address, [ld_value])
        return total

    return tile(shape, tile, x, types.intp, types.intp, w, *(types.intp,) * 3), code


@intrinsic
def load_add_pixels(typing, tile, c, i, ld, vector_ld, n):
    def code(context, builder, signature, args):
        emit = _Pixels(context, builder, tile)
        total, c_value, i_value, ld_value, vector_ld_value, n_value = args

        def added(step_after):
            addresses, registers = emit.vector_addresses(c, c_value, i_value, vector_ld_value), []
            for r in range(tile.rows):
                pairs = zip(emit.row(total, r), addresses, strict=True)
                registers += [emit.pinned(builder.fadd(vector, emit.load(address))) for vector, address in pairs]
                addresses = emit.moved(addresses, step_after(r))
            return registers, builder.block

        with builder.if_else(emit.is_whole(n_value), likely=True) as (whole, cut):
            with whole:
                ends = [added(lambda r: ld_value)]
            with cut:
                n_value = emit.unforeseen(n_value)
                ends.append(added(lambda r: emit.below(r + 1, n_value, ld_value)))
        either = [builder.phi(tile.vector) for _ in tile.registers]
        for registers, block in ends:
            for phi, vector in zip(either, registers, strict=True):
                phi.add_incoming(vector, block)
        for register, phi in enumerate(either):
            total = emit.set(total, register, phi)
        return total

    return tile(tile, c, *(types.intp,) * 4), code


@intrinsic
def store_pixels(typing, tile, c, i, ld, vector_ld, n):
    def code(context, builder, signature, args):
        emit = _Pixels(context, builder, tile)
        total, c_value, i_value, ld_value, vector_ld_value, n_value = args

        def store(r, addresses):
            for vector, address in zip(emit.row(total, r), addresses, strict=True):
                emit.store(vector, address)

        with builder.if_else(emit.is_whole(n_value), likely=True) as (whole, cut):
            with whole:
                addresses = emit.vector_addresses(c, c_value, i_value, vector_ld_value)
                for r in range(tile.rows):
                    store(r, addresses)
                    addresses = emit.moved(addresses, ld_value)
            with cut:
                n_value = emit.unforeseen(n_value)
                last = builder.mul(builder.sub(n_value, ir.Constant(INDEX, 1)), ld_value)
                addresses = emit.vector_addresses(c, c_value, builder.add(i_value, last), vector_ld_value)
                for r in reversed(range(tile.rows)):  # rows beyond n are overwritten by row n - 1
                    store(r, addresses)
                    addresses = emit.moved(addresses, builder.neg(emit.below(r, n_value, ld_value)))
        return context.get_dummy_value()

    return types.void(tile, c, *(types.intp,) * 4), code


@intrinsic
def prefetch_pixels(typing, tile, c, i, ld, vector_ld):
    def code(context, builder, signature, args):
        emit = _Pixels(context, builder, tile)
        addresses = emit.addresses(c, *args[1:])
        for r in range(tile.rows):
            for address in addresses(r):
                emit.prefetch(address, TO_WRITE, FIRST_LEVEL)
        return context.get_dummy_value()

    return types.void(tile, c, *(types.intp,) * 3), code


@intrinsic
def prefetch_line(typing, array, i):
    def code(context, builder, signature, args):
        emit = Code(context, builder, Tile(array.dtype, 1, 1))
        emit.prefetch(emit.at(array, *args), TO_READ, SECOND_LEVEL)
        return context.get_dummy_value()

    return types.void(array, types.intp), code


@intrinsic
def clamp(typing, tile, low, high):
    def code(context, builder, signature, args):
        emit = Code(context, builder, tile)
        total = args[0]
        ends = (
            context.cast(builder, value, kind, tile.dtype) for value, kind in zip(args[1:], (low, high), strict=True)
        )
        least, most = map(emit.broadcast, ends)
        for register in range(len(tile.registers)):
            vector = emit.get(total, register)
            vector = builder.select(builder.fcmp_ordered("<", vector, least), least, vector)
            vector = builder.select(builder.fcmp_ordered(">", vector, most), most, vector)
            total = emit.set(total, register, emit.pinned(vector))
        return total

    return tile(tile, low, high), code
