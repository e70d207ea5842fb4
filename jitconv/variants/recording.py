"""Kernels' calls written down once and run often: those of a whole network by one call of Python.

A kernel's call costs microseconds before it computes, because Numba looks at each argument. `record` makes that call
and keeps what its workers would be given; `RUN` runs any number of such recordings. In a recording the addresses of
arrays may be replaced, so that the next run finds them elsewhere.
"""

from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from jitconv.variants.compiling import njit
from jitconv.variants.threads import Kernel
from jitconv.variants.tiled.kernel import Tiled
from jitconv.variants.workers import ALONE, HEADER, NO_MEMORY, RECORD, call_work, start_work

MAX_BYTES = 1 << 12  # bytes of arguments
ALL = 1 << 30  # workers: as many as there are


class Recording(NamedTuple):
    """A call: the address of its workers' code, and their arguments as 8-byte numbers.

    numbers: the arguments, to be changed (at a tenth of the time). keeps: what must stay alive.
    """

    code: int
    arguments: np.ndarray
    numbers: Any
    keeps: Any


def record(kernel: Tiled, args: tuple[Any, ...]) -> Recording | None:
    """Record a kernel's call; None where the plain loops would have to compute it."""
    room = np.zeros(HEADER + MAX_BYTES // 8, np.int64)
    room[0] = MAX_BYTES
    if kernel.function(RECORD, room.ctypes.data, *kernel.options, *args) is False:
        return None
    _, code, size = room[:HEADER].tolist()
    if not 0 < size <= MAX_BYTES:
        raise RuntimeError(f"the arguments of a recorded call must be at most {MAX_BYTES} bytes, got {size}")
    arguments: Any = room[HEADER : HEADER + -(-size // 8)]
    return Recording(code, arguments, memoryview(arguments), args)


def table(recordings: list[tuple[Recording, int]]) -> np.ndarray:
    """What RUN takes: of recordings, which must be kept, each with the number of workers that it may have at most."""
    lines = [(each.code, each.arguments.ctypes.data, max_workers) for each, max_workers in recordings]
    return np.array(lines, np.int64).reshape(-1)


@intrinsic
def _failed(typing, arguments):
    """The first of the arguments, which becomes 0."""

    def code(context, builder, signature, args):
        failed_at = builder.inttoptr(args[0], ir.IntType(64).as_pointer())
        failed = builder.load(failed_at)
        builder.store(ir.Constant(ir.IntType(64), 0), failed_at)
        return failed

    return types.intp(types.intp), code


def run(start, workers, lines):
    """Run recordings, one after the other."""
    for i in range(0, len(lines), 3):
        code, arguments, count = lines[i], lines[i + 1], min(workers, lines[i + 2])
        if start == ALONE:
            call_work(code, 0, 1, arguments)
        else:
            start_work(start, code, count, arguments)
        if _failed(arguments) != 0:
            raise MemoryError(NO_MEMORY)


RUN = Kernel(njit(run))
