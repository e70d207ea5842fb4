"""Sharing a kernel out to cores: its code is compiled once, whoever runs it, and one loop starts all workers.

Numba's `parallel=True` would compile each kernel a second time, and all that it calls, three times over.
"""

import functools

from llvmlite import ir
from numba import prange, types
from numba.core import cgutils
from numba.extending import intrinsic

from jitconv import compat
from jitconv.variants.compiling import njit

_NUMBER, _POINTER = ir.IntType(64), ir.IntType(8).as_pointer()
_WORK = ir.FunctionType(ir.VoidType(), [_NUMBER, _NUMBER, _POINTER])  # worker, workers, arguments
_START = ir.FunctionType(ir.VoidType(), [_NUMBER, _NUMBER, _NUMBER])  # the address of work, workers, arguments
ALONE = 0  # the team of a kernel that runs on one core


@intrinsic
def _call(typing, work, worker, workers, arguments):
    def code(context, builder, signature, args):
        work, worker, workers, arguments = args
        function = builder.inttoptr(work, _WORK.as_pointer())
        builder.call(function, [worker, workers, builder.inttoptr(arguments, _POINTER)])
        return context.get_dummy_value()

    return types.void(*(types.intp,) * 4), code


def _start(work, workers, arguments):
    for worker in prange(workers):
        _call(work, worker, workers, arguments)


@functools.cache
def team() -> int:
    """Return the address of the loop that starts workers on Numba's threads, which must have been launched."""
    dispatcher, numbers = njit(_start, parallel=True), (types.intp,) * 3
    dispatcher.compile(numbers)
    compiled = dispatcher.overloads[numbers]
    return compiled.library.get_pointer_to_function(compiled.fndesc.llvm_cfunc_wrapper_name)


def _borrowed(context, builder, kind, value):
    """The value with its arrays not counted: threads that count slices of one array wait for each other."""
    if isinstance(kind, types.Array):
        array = context.make_array(kind)(context, builder, value)
        array.meminfo = cgutils.get_null_value(array.meminfo.type)
        return compat.struct_value(array)
    if isinstance(kind, types.BaseTuple):
        parts = cgutils.unpack_tuple(builder, value, len(kind.types))
        parts = [_borrowed(context, builder, part, each) for part, each in zip(kind.types, parts, strict=True)]
        return context.make_tuple(builder, kind, parts)
    return value


@intrinsic
def each_worker(typing, team, workers, function, args):
    """function(worker, workers, *args) for each worker: on a team's threads, or if it is ALONE, one after another."""
    call = function.get_call_type(typing, (types.intp, types.intp, *args.types), {})

    def code(context, builder, signature, values):
        team, workers, _, arguments = values
        arguments = _borrowed(context, builder, args, arguments)
        compiled = function.dispatcher.overloads[call.args]
        context.add_linking_libs([compiled.library])
        failed = cgutils.alloca_once_value(builder, ir.Constant(ir.IntType(1), 0))
        room = cgutils.alloca_once_value(builder, cgutils.pack_struct(builder, [arguments, failed]))

        # What a thread is given: the code that unpacks the arguments and calls, and where the arguments lie.
        work = ir.Function(builder.module, _WORK, builder.module.get_unique_name("work"))
        work.linkage = "internal"
        work.attributes.add("noinline")
        inside = ir.IRBuilder(work.append_basic_block())
        worker, count, address = work.args
        stored = inside.load(inside.bitcast(address, room.type))
        items = cgutils.unpack_tuple(inside, inside.extract_value(stored, 0), len(args.types))
        callee = context.declare_function(builder.module, compiled.fndesc)
        numbers = [worker, count, *items]
        status, _ = context.call_conv.call_function(inside, callee, call.return_type, call.args, numbers)
        with inside.if_then(status.is_error, likely=False):
            inside.store(ir.Constant(ir.IntType(1), 1), inside.extract_value(stored, 1))
        inside.ret_void()

        place = builder.bitcast(room, _POINTER)
        with builder.if_else(builder.icmp_signed("==", team, ir.Constant(_NUMBER, ALONE))) as (alone, together):
            with alone, cgutils.for_range(builder, workers) as loop:
                builder.call(work, [loop.index, workers, place])
            with together:
                start = builder.inttoptr(team, _START.as_pointer())
                builder.call(start, [builder.ptrtoint(work, _NUMBER), workers, builder.ptrtoint(place, _NUMBER)])
        with builder.if_then(builder.load(failed), likely=False):
            context.call_conv.return_user_exc(builder, MemoryError, ("a worker found no memory",))
        return context.get_dummy_value()

    return types.void(types.intp, types.intp, function, args), code
