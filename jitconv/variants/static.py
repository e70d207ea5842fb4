"""`jit-static`: plain loops compiled anew for each geometry, with every shape, stride and option as a constant.

The source is rows.py and scalar.py. What the constants do is LLVM's work: loops over taps unroll, tests of the padding
fold away, and a row's sums stay in registers. The code of a geometry is compiled at its first call and kept on disk.
"""

import hashlib
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from types import FunctionType, ModuleType, SimpleNamespace
from typing import Any

import numpy as np
from numba import types
from numba.extending import intrinsic

from jitconv import compat
from jitconv.variants import EXACT_OPS, OPS, Variant, get, rows, scalar
from jitconv.variants.compiling import EXACT, FAST, c_array, cache_folder, inner, multiply_add, njit, specialise
from jitconv.variants.jit import of_worker
from jitconv.variants.threads import Kernel
from jitconv.variants.workers import each_worker, portion

# Which loops an op is compiled from, and whether Numba's passes vectorise short loops before they unroll them. An op
# that is not named here gains nothing from constants: it is jit's code.
SOURCES = {
    "conv2d": (rows, True),
    "conv2d_grad_input": (rows, True),
    "conv2d_grad_weight": (rows, True),
    "conv2d_grad_bias": (scalar, True),
    "linear": (rows, True),
    "linear_grad_input": (rows, True),
    "linear_grad_weight": (rows, True),
    "max_pool2d": (scalar, False),
    "max_pool2d_grad_input": (scalar, False),
}
GEOMETRIES = 512  # that a process compiles, and that stay on disk; jit's code computes the ones after


def _compiled(tag: str, source: ModuleType, vectors_first: bool, **replacements: Any) -> SimpleNamespace:
    compiler = compat.LinkedVectorsFirstCompiler if vectors_first else compat.LinkedNoAliasCompiler

    def link(function: FunctionType) -> Any:
        how: dict[str, Any] = {"forceinline": True, "pipeline_class": compiler}
        return inner(function, fastmath=_flags(function.__name__), **how)

    def link_driver(function: FunctionType) -> Any:
        return link(of_worker(function) if function.__name__ in OPS else function)

    return specialise(source, tag, link, link_driver, portion=portion, multiply_add=multiply_add, **replacements)


def _flags(name: str) -> frozenset[str]:
    return EXACT if name.startswith(EXACT_OPS) else FAST


Array = tuple[tuple[int, ...], np.dtype]  # what a geometry says of an array: shape and dtype
_BODIES = ("linear_at", "zero")  # of scalar.py, that rows.py calls
_loops: dict[tuple[str, bool], SimpleNamespace] = {}


def _source(module: ModuleType, vectors_first: bool) -> SimpleNamespace:
    """The module's functions, ready to be inlined into kernels."""
    key = (module.__name__, vectors_first)
    if key not in _loops:
        others = {}
        if module is rows:
            bodies = _source(scalar, vectors_first)
            others = {name: getattr(bodies, name) for name in _BODIES}
        _loops[key] = _compiled(f"static{vectors_first:d}", module, vectors_first, **others)
    return _loops[key]


def _told(shapes: list[tuple[int, ...]], constants: tuple[Any, ...], inputs: int) -> Any:
    """Return an intrinsic: from an op's arrays, `inputs` and then outs, to all its arguments with constant sizes."""

    @intrinsic
    def told(typing, worker, workers, arrays):
        kinds = [typing.resolve_value_type(constant) for constant in constants]
        parts = [types.intp, types.intp, *arrays.types]
        parts[2 + inputs : 2 + inputs] = kinds

        def code(context, builder, signature, args):
            worker, workers, packed = args
            values = []
            for i, (shape, kind) in enumerate(zip(shapes, arrays.types, strict=True)):
                array = context.make_array(kind)(context, builder, builder.extract_value(packed, i))
                values.append(c_array(context, builder, kind, array.data, shape))
            values[inputs:inputs] = [
                context.get_constant_generic(builder, kind, constant)
                for kind, constant in zip(kinds, constants, strict=True)
            ]
            return context.make_tuple(builder, signature.return_type, [worker, workers, *values])

        return types.Tuple(parts)(worker, workers, arrays), code

    return told


# What a kernel is made of; `driver`, `told`, `each_worker` and `work` are given to each copy.
def _of_one(worker, workers, a):
    driver(*told(worker, workers, (a,)))  # noqa: F821


def _of_two(worker, workers, a, b):
    driver(*told(worker, workers, (a, b)))  # noqa: F821


def _of_three(worker, workers, a, b, c):
    driver(*told(worker, workers, (a, b, c)))  # noqa: F821


def _of_four(worker, workers, a, b, c, d):
    driver(*told(worker, workers, (a, b, c, d)))  # noqa: F821


_WORKS = {work.__code__.co_argcount - 2: work for work in (_of_one, _of_two, _of_three, _of_four)}


def _share(start, workers, *arrays):
    each_worker(start, workers, work, arrays)  # noqa: F821


def compile_for(op: str, arrays: Sequence[Array], constants: tuple[Any, ...], cache: bool = True) -> Any:
    """Return the function of (start, workers, *arrays) for these shapes, dtypes and constants; compiled when called."""
    module, vectors_first = SOURCES[op]
    driver = getattr(_source(module, vectors_first), op)
    told = _told([shape for shape, _ in arrays], constants, len(arrays) - _outs(op))
    flags, name = _flags(op), f"{op}.{_digest(arrays, constants)}"
    compiler = compat.LinkedVectorsFirstCompiler if vectors_first else compat.LinkedNoAliasCompiler
    work = inner(_copy(_WORKS[len(arrays)], name, driver=driver, told=told), fastmath=flags, pipeline_class=compiler)
    options = {"pipeline_class": compat.VectorsFirstCompiler} if vectors_first else {}
    return njit(_copy(_share, name, each_worker=each_worker, work=work), fastmath=flags, cache=cache, **options)


def _outs(op: str) -> int:
    return 2 if op == "max_pool2d" else 1  # values and indices


def _copy(function: Any, name: str, **names: Any) -> FunctionType:
    copy = FunctionType(function.__code__, names, function.__name__)
    copy.__qualname__, copy.__module__ = name, __name__
    return copy


def _digest(arrays: Sequence[Array], constants: tuple[Any, ...]) -> str:
    return hashlib.sha256(repr(([(s, str(d)) for s, d in arrays], constants)).encode()).hexdigest()[:16]


class Sized(Kernel):
    """The kernel of one geometry: called like the op, with arrays of the shapes that it is told."""

    def __init__(self, function: Any, constants: slice) -> None:
        super().__init__(function)
        self.constants = constants

    def run(self, start: int, workers: int, *args: Any) -> None:
        self.function(start, workers, *args[: self.constants.start], *args[self.constants.stop :])


class Static:
    """An op's kernel: bound to a geometry it is one of Sized; called without, it binds itself and remembers."""

    def __init__(self, op: str, plain: Callable[..., None]) -> None:
        self.op, self.plain = op, plain
        self.bound: dict[Any, Callable[..., None]] = {}

    def bind(self, arrays: Sequence[Array], constants: Sequence[Any]) -> Callable[..., None]:
        key = tuple((tuple(shape), np.dtype(dtype)) for shape, dtype in arrays), tuple(map(_hashable, constants))
        with _compiling:
            if key not in self.bound:
                self.bound[key] = self._kernel(*key) if _room() else self.plain
            return self.bound[key]

    def _kernel(self, arrays: Sequence[Array], constants: tuple[Any, ...]) -> Sized:
        inputs = len(arrays) - _outs(self.op)
        return Sized(compile_for(self.op, arrays, constants), slice(inputs, inputs + len(constants)))

    def __call__(self, *args: Any) -> None:
        arrays = [(arg.shape, arg.dtype) for arg in args if isinstance(arg, np.ndarray)]
        constants = [arg for arg in args if not isinstance(arg, np.ndarray)]
        self.bind(arrays, constants)(*args)


_compiling = threading.RLock()


def _hashable(constant: Any) -> Any:
    return tuple(constant) if isinstance(constant, list) else constant


def _room() -> bool:
    """Whether another geometry may be compiled; makes place for it on disk."""
    folder = cache_folder()
    if folder is not None:
        with suppress(OSError):
            files = sorted(folder.glob("static.*.nbi"), key=lambda file: file.stat().st_mtime)
            for old in files[: max(0, len(files) - GEOMETRIES + 1)]:
                for file in folder.glob(f"{old.stem}*"):
                    file.unlink(missing_ok=True)
    return sum(len(kernel.bound) for kernel in _kernels.values()) < GEOMETRIES


_plain = get("jit-parallel").ops
_kernels = {op: Static(op, _plain[op]) for op in SOURCES}
VARIANTS = (Variant("jit-static", "cpu", {op: _kernels.get(op, _plain[op]) for op in OPS}),)
