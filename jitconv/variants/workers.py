"""Sharing a kernel out to workers: its code is compiled once, and one call starts it on all threads of a pool.

Numba's `parallel=True` would compile each kernel a second time, and all that it calls, three times over; and its
threads would be a second pool beside torch's, each waiting for work where the other has some.
"""

import functools

from llvmlite import binding, ir
from numba import prange, types
from numba.core import cgutils
from numba.extending import intrinsic

from jitconv import compat
from jitconv.variants.compiling import inner, njit

_INT, _NUMBER, _POINTER = ir.IntType(32), ir.IntType(64), ir.IntType(8).as_pointer()
_WORK = ir.FunctionType(ir.VoidType(), [_NUMBER, _NUMBER, _POINTER])  # worker, workers, arguments
_START = ir.FunctionType(ir.VoidType(), [_NUMBER, _NUMBER, _NUMBER])  # the address of work, workers, arguments
ALONE = 0  # in the place of a pool's start: one worker after another, on the calling thread
RECORD = 1  # or nothing runs, and what would is written down: see each_worker
HEADER = 3  # numbers of what RECORD writes, before the arguments
NO_MEMORY = "a worker found no memory"


@inner
def portion(worker, workers, n):
    """The worker's part of range(n)."""
    return range(n * worker // workers, n * (worker + 1) // workers)


# Starting workers: functions of (address of work, workers, address of arguments) -------------------------------


def _address(start, **options):
    dispatcher, numbers = njit(start, **options), (types.intp,) * 3
    dispatcher.compile(numbers)
    compiled = dispatcher.overloads[numbers]
    return compiled.library.get_pointer_to_function(compiled.fndesc.llvm_cfunc_wrapper_name)


@intrinsic
def call_work(typing, work, worker, workers, arguments):
    """Do one worker's part, on this thread."""

    def code(context, builder, signature, args):
        work, worker, workers, arguments = args
        function = builder.inttoptr(work, _WORK.as_pointer())
        builder.call(function, [worker, workers, builder.inttoptr(arguments, _POINTER)])
        return context.get_dummy_value()

    return types.void(*(types.intp,) * 4), code


@intrinsic
def start_work(typing, start, work, workers, arguments):
    """Do all workers' parts, on the pool of `start`."""

    def code(context, builder, signature, args):
        builder.call(builder.inttoptr(args[0], _START.as_pointer()), args[1:])
        return context.get_dummy_value()

    return types.void(*(types.intp,) * 4), code


def _start_numba(work, workers, arguments):
    for worker in prange(workers):
        call_work(work, worker, workers, arguments)


@functools.cache
def start_on_numba() -> int:
    """Return the address of what starts workers on Numba's threads, which must have been launched."""
    return _address(_start_numba, parallel=True)


@intrinsic
def _openmp_parallel(typing, work, workers, arguments, team):
    """#pragma omp parallel num_threads(workers), as GNU's compiler translates it.

    team (literally): whether each thread is one worker, of as many as there are threads.
    """
    if not isinstance(team, types.BooleanLiteral):
        return None

    def code(context, builder, signature, args):
        args = args[:3]
        module, job = builder.module, cgutils.alloca_once_value(builder, cgutils.pack_array(builder, args))
        # What each thread runs. It may find fewer threads than were asked for, and then takes several workers' work.
        thread = ir.Function(module, ir.FunctionType(ir.VoidType(), [_POINTER]), module.get_unique_name("thread"))
        thread.linkage = "internal"
        inside = ir.IRBuilder(thread.append_basic_block())
        work, workers, arguments = cgutils.unpack_tuple(inside, inside.load(inside.bitcast(thread.args[0], job.type)))

        def number(name):
            function = cgutils.get_or_insert_function(module, ir.FunctionType(_INT, []), f"jitconv_{name}")
            return inside.sext(inside.call(function, []), _NUMBER)

        first, step = number("omp_get_thread_num"), number("omp_get_num_threads")
        function, given = inside.inttoptr(work, _WORK.as_pointer()), inside.inttoptr(arguments, _POINTER)
        if team.literal_value:
            inside.call(function, [first, step, given])
        else:
            with cgutils.for_range_slice(inside, first, workers, step, inc=True) as (worker, _):
                inside.call(function, [worker, workers, given])
        inside.ret_void()

        kinds = [thread.type, _POINTER, _INT, _INT]
        start = cgutils.get_or_insert_function(module, ir.FunctionType(ir.VoidType(), kinds), "jitconv_GOMP_parallel")
        count = builder.trunc(args[1], _INT)
        builder.call(start, [thread, builder.bitcast(job, _POINTER), count, ir.Constant(_INT, 0)])
        return context.get_dummy_value()

    return types.void(*(types.intp,) * 3, team), code


def _start_openmp(work, workers, arguments):
    _openmp_parallel(work, workers, arguments, False)


def _start_openmp_team(work, workers, arguments):
    _openmp_parallel(work, workers, arguments, True)


@functools.cache
def _openmp() -> dict[str, int] | None:
    functions = compat.openmp_of_torch()
    for name, address in (functions or {}).items():
        binding.add_symbol(f"jitconv_{name}", address)
    return functions


@functools.cache
def start_on_torch() -> int | None:
    """Return the address of what starts workers on torch's threads; None where those are not OpenMP's."""
    return None if _openmp() is None else _address(_start_openmp)


@functools.cache
def team_on_torch() -> tuple[int, int]:
    """Return the addresses of what starts a team of workers on torch's threads, and of the barrier that they share.

    Each worker of a team has a thread of its own; there may be fewer than were asked for. (0, 0): there are no teams.
    """
    functions = _openmp()
    return (0, 0) if functions is None else (_address(_start_openmp_team), functions["GOMP_barrier"])


@intrinsic
def wait_for_team(typing, barrier):
    """Wait until all workers of the team are here."""

    def code(context, builder, signature, args):
        builder.call(builder.inttoptr(args[0], ir.FunctionType(ir.VoidType(), []).as_pointer()), [])
        return context.get_dummy_value()

    return types.void(types.intp), code


@intrinsic
def take_next(typing, array, i):
    """array[i]++, of which no two workers get the same number."""

    def code(context, builder, signature, args):
        values = context.make_array(array)(context, builder, args[0])
        place = builder.gep(values.data, [args[1]])
        return builder.atomic_rmw("add", place, ir.Constant(_NUMBER, 1), "monotonic")

    return types.intp(array, types.intp), code


# What workers do -------------------------------------------------------------------------------------------------


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
def each_worker(typing, start, workers, function, args):
    """function(worker, workers, *args) for each worker: on the pool of `start`; if that is ALONE, in turn.

    If it is RECORD, `workers` is an address, where three numbers are: how many bytes may follow them (which is read),
    the address of the code that each worker runs, and how many bytes that is given (which are written). Those bytes
    come next, if they are not too many: 8 that become 1 where a worker has failed, and the arguments.
    """
    call = function.get_call_type(typing, (types.intp, types.intp, *args.types), {})

    def code(context, builder, signature, values):
        start, workers, _, arguments = values
        arguments = _borrowed(context, builder, args, arguments)
        compiled = function.dispatcher.overloads[call.args]
        context.add_linking_libs([compiled.library])
        failed = ir.Constant(_NUMBER, 0)
        room = cgutils.alloca_once_value(builder, cgutils.pack_struct(builder, [failed, arguments]))

        # What a thread is given: the code that unpacks the arguments and calls, and where the arguments lie.
        work = ir.Function(builder.module, _WORK, builder.module.get_unique_name("work"))
        work.linkage = "internal"
        work.attributes.add("noinline")
        inside = ir.IRBuilder(work.append_basic_block())
        worker, count, address = work.args
        given = inside.bitcast(address, room.type)
        items = cgutils.unpack_tuple(inside, inside.extract_value(inside.load(given), 1), len(args.types))
        callee = context.declare_function(builder.module, compiled.fndesc)
        numbers = [worker, count, *items]
        status, _ = context.call_conv.call_function(inside, callee, call.return_type, call.args, numbers)
        with inside.if_then(status.is_error, likely=False):
            inside.store(ir.Constant(_NUMBER, 1), cgutils.gep_inbounds(inside, given, 0, 0))
        inside.ret_void()

        job, address = builder.bitcast(room, _POINTER), builder.ptrtoint(work, _NUMBER)
        here, recorded = (builder.icmp_signed("==", start, ir.Constant(_NUMBER, each)) for each in (ALONE, RECORD))
        with builder.if_else(here) as (alone, otherwise):
            with alone, cgutils.for_range(builder, workers) as loop:
                builder.call(work, [loop.index, workers, job])
            with otherwise, builder.if_else(recorded) as (record, together):
                with record:
                    _write_down(builder, workers, address, job, context.get_abi_sizeof(room.type.pointee))
                with together:
                    function_of_pool = builder.inttoptr(start, _START.as_pointer())
                    builder.call(function_of_pool, [address, workers, builder.ptrtoint(job, _NUMBER)])
        failed = builder.load(cgutils.gep_inbounds(builder, room, 0, 0))
        with builder.if_then(cgutils.is_not_null(builder, failed), likely=False):
            context.call_conv.return_user_exc(builder, MemoryError, (NO_MEMORY,))
        return context.get_dummy_value()

    return types.void(types.intp, types.intp, function, args), code


def _write_down(builder, target, work, arguments, size):
    header = builder.inttoptr(target, _NUMBER.as_pointer())
    room, of_work, of_size, payload = (builder.gep(header, [ir.Constant(_NUMBER, i)]) for i in range(HEADER + 1))
    size = ir.Constant(_NUMBER, size)
    builder.store(work, of_work)
    builder.store(size, of_size)
    with builder.if_then(builder.icmp_signed("<=", size, builder.load(room))):
        cgutils.raw_memcpy(builder, payload, arguments, size, 1)
