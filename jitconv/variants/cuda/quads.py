"""Four neighbours in memory at once: one 128-bit instruction for float32, two for float64.

    load4(array, index)           the values at index, and at the three positions after it in the last dimension
    store4(array, index, values)  write them there

The first must lie at a multiple of 16 bytes (see `aligned`, `in_quads`), all four in the array.
"""

from typing import Any

from jitconv.variants.cuda.sizes import SIMULATED

BYTES = 16  # of alignment


def aligned(*arrays: Any) -> bool:
    """Return whether these arrays begin where a quad may."""
    return SIMULATED or not any(array.data_ptr() % BYTES for array in arrays)


def in_quads(array: Any) -> bool:
    """Return whether the last dimension consists of quads."""
    return array.shape[-1] % 4 == 0 and aligned(array)


if SIMULATED:

    def load4(array, index):
        return tuple(array[(*index[:-1], index[-1] + e)] for e in range(4))

    def store4(array, index, values):
        for e in range(4):
            array[(*index[:-1], index[-1] + e)] = values[e]

else:
    from llvmlite import ir
    from numba.cuda import cgutils, types  # type: ignore[attr-defined]
    from numba.cuda.extending import intrinsic

    def _address(context, builder, array_type, index_type, array, index):
        """A pointer to the vector of four that begins at array[index]."""
        struct = context.make_array(array_type)(context, builder, array)
        indices = cgutils.unpack_tuple(builder, index, len(index_type))
        first = cgutils.get_item_pointer(context, builder, array_type, struct, indices, wraparound=False)
        vector = ir.VectorType(context.get_data_type(array_type.dtype), 4)
        return builder.bitcast(first, vector.as_pointer())

    def _lane(e):
        return ir.Constant(ir.IntType(32), e)

    @intrinsic
    def load4(typingctx, array, index):
        def generate(context, builder, signature, args):
            vector = builder.load(_address(context, builder, array, index, *args), align=BYTES)
            values = [builder.extract_element(vector, _lane(e)) for e in range(4)]
            return context.make_tuple(builder, signature.return_type, values)

        return types.UniTuple(array.dtype, 4)(array, index), generate

    @intrinsic
    def store4(typingctx, array, index, values):
        def generate(context, builder, signature, args):
            pointer = _address(context, builder, array, index, *args[:2])
            vector = ir.Constant(ir.VectorType(context.get_data_type(array.dtype), 4), ir.Undefined)
            for e, value in enumerate(cgutils.unpack_tuple(builder, args[2], 4)):
                vector = builder.insert_element(vector, value, _lane(e))
            builder.store(vector, pointer, align=BYTES)
            return context.get_dummy_value()

        return types.none(array, index, values), generate
