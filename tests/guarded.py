"""Arrays beside pages that nobody may touch, and a run of the case table on them: `python -m tests.guarded --help`.

A kernel that reads or writes one byte outside its arrays ends this process with SIGSEGV; so does one that writes to
what it may only read. The row that runs is printed before it does.
"""

import argparse
import ctypes
import faulthandler
import mmap
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import torch

import jitconv
from jitconv import functional, op, variants
from jitconv.cases import CASES, sampled
from jitconv.plan.program import Frame
from jitconv.variants.tiled import layout
from jitconv.verify import Expected, results

NONE, READ, BOTH = 0, 1, 3  # PROT_NONE, PROT_READ, PROT_READ | PROT_WRITE
PAGE = mmap.PAGESIZE
PLANS = "plan"  # in the place of a variant's name
DTYPES = ("float32", "float64")
_libc = ctypes.CDLL(None, use_errno=True)


class Fence:
    """Memory for an array that ends at a page nobody may touch, or begins after one (`at_end` False)."""

    def __init__(self, shape: Sequence[int], dtype: Any, at_end: bool) -> None:
        dtype = np.dtype(dtype)
        size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        self.inside = -(-size // PAGE) * PAGE
        pages = mmap.mmap(-1, self.inside + 2 * PAGE)
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(pages))
        offset = PAGE + (self.inside - size if at_end else 0)
        self.array: np.ndarray = np.ndarray(tuple(shape), dtype, pages, offset)  # which keeps the pages
        self._protect(0, PAGE, NONE)
        self._protect(PAGE + self.inside, PAGE, NONE)

    def allow(self, access: int) -> None:
        if self.inside:
            self._protect(PAGE, self.inside, access)

    def _protect(self, start: int, size: int, access: int) -> None:
        if _libc.mprotect(ctypes.c_void_p(self.address + start), ctypes.c_size_t(size), access):
            raise OSError(ctypes.get_errno(), "mprotect")


def fenced(value: Any, at_end: bool) -> Any:
    """A copy of an array behind a fence; anything else as it is."""
    if not isinstance(value, np.ndarray):
        return value
    fence = Fence(value.shape, value.dtype, at_end)
    fence.array[...] = value
    return fence


def call(kernel: Callable[..., Any], args: Sequence[Any], at_end: bool, outs: Sequence[int] | None = None) -> None:
    """Call a kernel with all arrays behind fences, and copy back what it wrote.

    outs: the places of the arrays it may write to; None where that is not known, and each of them may be written to.
    """
    fences = [fenced(arg, at_end) for arg in args]
    for i, fence in enumerate(fences):
        if isinstance(fence, Fence) and outs is not None and i not in outs:
            fence.allow(READ)
    kernel(*(fence.array if isinstance(fence, Fence) else fence for fence in fences))
    # Of arrays that may share memory, one that was only read must not undo what another one got.
    written = [
        isinstance(fence, Fence) and (i in outs if outs is not None else fence.array.tobytes() != arg.tobytes())
        for i, (arg, fence) in enumerate(zip(args, fences, strict=True))
    ]
    for arg, fence, changed in zip(args, fences, written, strict=True):
        if changed:
            arg[...] = fence.array


@contextmanager
def fences(at_end: bool) -> Iterator[None]:
    """While this lasts, the kernels of all ops and their workspaces lie behind fences."""
    bind, workspace = op.Bound.__init__, layout.workspace

    def behind_fences(self: Any, *args: Any, **options: Any) -> None:
        bind(self, *args, **options)
        kernel, inputs = self.kernel, self.op.tensor_count + len(self.kernel_constants)
        self.kernel = lambda *given: call(kernel, given, at_end, range(inputs, len(given)))

    op.Bound.__init__ = behind_fences  # type: ignore[method-assign]
    layout.workspace = lambda name, size, dtype: Fence((size,), dtype, at_end).array  # type: ignore[assignment]
    _forget_calls()
    try:
        yield
    finally:
        op.Bound.__init__, layout.workspace = bind, workspace  # type: ignore[method-assign]
        _forget_calls()


def _forget_calls() -> None:
    for name in variants.available("cpu"):
        variants.get(name).calls.clear()


def ends(whole: bool) -> list[tuple[bool, int]]:
    """Whether the arrays end at a fence, and the number of threads."""
    return [(True, 1), (False, 2), (True, 2), (False, 1)] if whole else [(True, 1), (False, 2)]


Row = tuple[str, Callable[[], None]]


def layer_rows(variant: str, whole: bool) -> Iterator[Row]:
    """Every case of the table, forward and backward, checked against torch."""
    for case in CASES if whole else sampled(variant, CASES):
        for dtype in DTYPES:
            yield f"{variant}, {case}, {dtype}", partial(_layer, variant, case, dtype, whole)


def _layer(variant: str, case: Any, dtype: str, whole: bool) -> None:
    expected = Expected(case, dtype)
    layer = partial(getattr(functional, case.layer), variant=variant)
    for at_end, threads in ends(whole):
        torch.set_num_threads(threads)
        with fences(at_end):
            found = expected.compare(variant, results(layer, case, expected.inputs, expected.grad))
        assert all(check.ok for check in found), [check for check in found if not check.ok]


def plan_rows(whole: bool) -> Iterator[Row]:
    """Plans of the modules that tests/plan has."""
    from tests.plan.test_modules import MODULES

    for name in MODULES:
        for dtype in DTYPES:
            yield f"{PLANS}, {name}, {dtype}", partial(_plan, name, dtype, whole)


def _plan(name: str, dtype: str, whole: bool) -> None:
    from tests.plan.test_modules import close, prepared

    torch.manual_seed(0)
    model, inputs = prepared(name, getattr(torch, dtype))
    with torch.no_grad():
        wanted = model(*inputs)
    if name == "batch norm in training":
        return  # the second call has other statistics
    plan = jitconv.plan(model, *inputs)
    bind, recorded = Frame.bind, Frame._recorded
    for at_end, threads in ends(whole):

        def fenced_bind(self: Frame, weights: Any, at_end: bool = at_end) -> None:
            bind(self, weights)
            own = (self._torch, self._drop)
            for calls in (self.calls, self.alone):
                calls[:] = [(f if f in own else partial(_step, f, at_end), args) for f, args in calls]

        torch.set_num_threads(threads)
        plan.program.frames.clear()
        Frame.bind = fenced_bind  # type: ignore[method-assign]
        Frame._recorded = lambda *_: []  # type: ignore[method-assign]  # what is recorded has its arrays' addresses
        before = _steps_run()
        try:
            with fences(at_end):
                close(plan(*inputs), wanted, 1e-5 if dtype == "float32" else 1e-13)
        finally:
            Frame.bind, Frame._recorded = bind, recorded  # type: ignore[method-assign]
        kernels = [step for step in plan.program.steps if not step.is_torch]
        assert _steps_run() - before == len(kernels), "each kernel once"
    plan.program.frames.clear()


_ran = [0]


def _steps_run() -> int:
    return _ran[0]


def _step(kernel: Callable[..., Any], at_end: bool, *args: Any) -> None:
    call(kernel, args, at_end)
    _ran[0] += 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("variant", help=f"a variant's name, or {PLANS}")
    parser.add_argument("--whole", action="store_true", help="every row, and both ends on one thread and on two")
    parser.add_argument("--from", dest="first", type=int, default=0, help="the first row to run")
    parser.add_argument("--fail", choices=("read", "write", "input"), help="touch what may not be touched, and end")
    options = parser.parse_args()
    faulthandler.enable()
    rows = plan_rows(options.whole) if options.variant == PLANS else layer_rows(options.variant, options.whole)
    if options.fail:
        wrong = variants.register_variant("wrong", base="jit", relu=partial(_stray, options.fail)).name
        rows = islice((row for row in layer_rows(wrong, False) if "relu" in row[0]), 1)
    for number, (name, run) in enumerate(rows):
        if number >= options.first:
            print(f"{number}\t{name}", flush=True)
            try:
                run()
            except Exception as error:
                print(f"wrong\t{type(error).__name__}: {error}".replace("\n", " "), flush=True)
    print("done", flush=True)


def _stray(how: str, x: np.ndarray, out: np.ndarray) -> None:
    """relu that also touches the number after its array, or its input."""
    out[...] = np.maximum(x, 0)
    if how == "input":
        ctypes.memset(x.ctypes.data, 0, x.nbytes)
    elif how == "write":
        ctypes.memset(out.ctypes.data + out.nbytes, 0, 1)
    else:
        ctypes.string_at(x.ctypes.data + x.nbytes, 1)


if __name__ == "__main__":
    main()
