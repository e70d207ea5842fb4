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

from jitconv.variants.compiling import inner, njit
from jitconv.variants.simd import CACHE_LINE
from jitconv.variants.threads import Kernel, pool
from jitconv.variants.tiled.kernel import Tiled
from jitconv.variants.workers import (
    ALONE,
    HEADER,
    NO_MEMORY,
    RECORD,
    call_work,
    each_worker,
    start_work,
    take_next,
    wait_for_team,
)

MAX_BYTES = 1 << 12  # bytes of arguments
ENTRY = 3  # numbers of a recording in a table
APART = CACHE_LINE // 8  # numbers, between counters that different workers change


class Recording(NamedTuple):
    """A call: the address of its workers' code, and their arguments as 8-byte numbers.

    numbers: the arguments, to be changed (at a tenth of the time). parts: see Tiled. keeps: what must stay alive.
    """

    code: int
    arguments: np.ndarray
    numbers: Any
    parts: int
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
    return Recording(code, arguments, memoryview(arguments), kernel.parts, args)


def table(recordings: list[tuple[Recording, bool]]) -> np.ndarray:
    """What RUN takes: of recordings, which must be kept, each with whether it is too small for more than one worker."""
    lines = [(each.code, each.arguments.ctypes.data, 0 if small else each.parts) for each, small in recordings]
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


def run(start, workers, team, lines):
    """Run recordings, one after the other; team: see team_on_torch."""
    steps, failed = len(lines) // ENTRY, 0
    if start == ALONE or team[0] == 0:
        for i in range(steps):
            code, arguments, parts = lines[ENTRY * i], lines[ENTRY * i + 1], lines[ENTRY * i + 2]
            if start == ALONE:
                call_work(code, 0, 1, arguments)
            else:
                start_work(start, code, workers if parts > 0 else 1, arguments)
    else:
        taken = np.zeros(steps * workers * APART, np.int64)
        each_worker(team[0], workers, _run_together, (team[1], lines, taken))
    for i in range(steps):
        failed += _failed(lines[ENTRY * i + 1])
    if failed != 0:
        raise MemoryError(NO_MEMORY)


@inner
def _run_together(worker, workers, barrier, lines, taken):
    """A worker's share of each recording, part by part, and then the parts that another has not come to.

    Who waits at a barrier may wait long for a worker whose core something else uses, so the shares must not be fixed.
    """
    for i in range(len(lines) // ENTRY):
        code, arguments, parts = lines[ENTRY * i], lines[ENTRY * i + 1], lines[ENTRY * i + 2]
        if parts == 0 and worker == 0:
            call_work(code, 0, 1, arguments)
        for distance in range(workers if parts > 0 else 0):
            share = (worker + distance) % workers
            part = take_next(taken, (i * workers + share) * APART)
            while part < parts:
                call_work(code, share * parts + part, workers * parts, arguments)
                part = take_next(taken, (i * workers + share) * APART)
        wait_for_team(barrier)


class Run(Kernel):
    """Runs recordings: RUN(table(...))."""

    def run(self, start: int, workers: int, *args: Any) -> None:
        self.function(start, workers, (0, 0) if start == ALONE else pool().team, *args)


RUN = Run(njit(run))
