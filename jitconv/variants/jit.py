"""`jit` and `jit-parallel`: the equations compiled by Numba, for one core and for all of them.

What the second changes is the schedule alone: `prange`, over the independent outputs, is each worker's portion of them.
Numba's own prange (`parallel=True`) compiles seven times as long and runs on a second pool of threads beside torch's.
"""

import inspect
import re
from collections.abc import Callable
from functools import partial
from types import FunctionType, SimpleNamespace
from typing import Any

from jitconv.variants import EXACT_OPS, OPS, Variant, scalar
from jitconv.variants.compiling import EXACT, FAST, inner, multiply_add, njit, specialise
from jitconv.variants.threads import Kernel
from jitconv.variants.workers import each_worker, portion


def _compile(function: Callable[..., None], how: Callable[..., Any] = njit, **options: Any) -> Any:
    return how(function, fastmath=EXACT if function.__name__.startswith(EXACT_OPS) else FAST, **options)


# Without forced inlining, calling a body costs as much as its arithmetic.
_body = partial(_compile, how=inner, forceinline=True)


# LLVM vectorises a loop that counts from 0, with an index that is never negative; over the range itself it does not.
_PRANGE = re.compile(r"( +)for (\w+) in prange\((.*)\):\n")
_PORTION = r"""\1_own = portion(worker, workers, \3)
\1for _step in range(len(_own)):
\1    \2 = max(0, _own.start) + _step
"""


def of_worker(function: FunctionType) -> FunctionType:
    """A driver as one worker runs it: f(worker, workers, *args), where prange(n) is its portion of range(n)."""
    lines, first = inspect.getsourcelines(function)
    source, loops = _PRANGE.subn(_PORTION, "".join(lines).replace("(", "(worker, workers, ", 1))
    if loops != 1:
        raise ValueError(f"{function.__qualname__}: expected one loop over prange to share out, got {loops}")
    defined: dict[str, Any] = {}
    exec(compile("\n" * (first - 1) + source, function.__code__.co_filename, "exec"), function.__globals__, defined)
    return _named(defined[function.__name__], function)


def _shared(function: FunctionType) -> Any:
    """A driver whose loop is shared out: f(start, workers, *args), see each_worker."""
    names = {"each_worker": each_worker, "worker": _compile(of_worker(function), how=inner)}
    return njit(_named(FunctionType(_run.__code__, names, function.__name__), function))


def _run(start, workers, *args):
    each_worker(start, workers, worker, args)  # noqa: F821


def _named(copy: FunctionType, function: FunctionType) -> FunctionType:
    copy.__qualname__, copy.__module__ = function.__qualname__, function.__module__
    return copy


def _compiled(tag: str, driver: Callable[..., Any], **replacements: Any) -> SimpleNamespace:
    return specialise(scalar, tag, _body, driver, multiply_add=multiply_add, **replacements)


serial = _compiled("jit", _compile)
_parallel = _compiled("jit_parallel", _shared, portion=portion)


class Parallel(Kernel):
    """On one core jit's code: a convolution's loop over a portion is a little slower."""

    def __init__(self, op: str) -> None:
        super().__init__(getattr(_parallel, op))
        self.serial = getattr(serial, op)

    def run(self, start: int, workers: int, *args: Any) -> None:
        if workers == 1:
            self.serial(*args)
        else:
            self.function(start, workers, *args)


VARIANTS = (
    Variant("jit", "cpu", {op: getattr(serial, op) for op in OPS}),
    Variant("jit-parallel", "cpu", {op: Parallel(op) for op in OPS}),
)
