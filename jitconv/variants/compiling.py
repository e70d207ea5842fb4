"""How Python loops become machine code here: Numba's flags, and a compile cache that many processes may share."""

import functools
import glob
import hashlib
import math
import os
import stat
import warnings
from collections.abc import Callable
from contextlib import nullcontext, suppress
from pathlib import Path
from types import FunctionType, ModuleType, SimpleNamespace
from typing import Any

import numba
from filelock import FileLock
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numba.np.arrayobj import populate_array

from jitconv import compat

# Sums may be reordered and contracted to fused multiply-adds; NaN and infinity keep their meaning.
FAST = frozenset({"contract", "reassoc", "nsz", "arcp"})
EXACT: frozenset[str] = frozenset()


@functools.cache
def _kernel_sources() -> bytes:
    """A digest of every file that kernels are made from: Numba itself misses an edit in a called function's file."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.digest()


class UntrustedCache(RuntimeWarning):
    """A folder for compiled code that others can write to: it is not used."""


refused: set[str] = set()  # what was said of folders, once


def _trusted(folder: Path) -> bool:
    """Whether only we can have written what lies in a folder: compiled code is loaded from there, and run.

    Warns once of a folder that others may write to or replace, or that somebody else made in one such (in /tmp, say).
    """
    if not hasattr(os, "geteuid"):  # Windows: folders have no such modes
        return True
    folder = folder.resolve()
    inside = folder.stat()
    culprit = folder if inside.st_mode & stat.S_IWOTH else None
    for parent in folder.parents:
        above = parent.stat()
        stays = above.st_mode & stat.S_ISVTX and inside.st_uid in (0, os.geteuid())  # nobody else may rename it
        if above.st_mode & stat.S_IWOTH and not stays:
            culprit = parent
        inside = above
    if culprit is not None:
        message = f"compiled code is not kept in {folder}, because others can write to {culprit}: "
        message += "chmod o-w, or set NUMBA_CACHE_DIR to another one"
        if message not in refused:
            refused.add(message)
            warnings.warn(message, UntrustedCache, stacklevel=2)
    return culprit is None


class SharedCache(compat.cache_class(lambda: _kernel_sources(), lambda folder: _trusted(folder))):  # type: ignore[misc]
    """Numba's on-disk cache behind a file lock: without one, two processes can leave an index that names wrong code."""

    def _locked(self) -> Any:
        folder = Path(self.cache_path)
        return FileLock(folder / f"{self.base_name}.lock") if os.access(folder, os.W_OK) else nullcontext()

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        try:
            with self._locked():
                return super().load_overload(sig, target_context)
        except Exception:  # a damaged file costs a compilation, never a crash
            with suppress(Exception), self._locked():
                self.flush()
            return None

    def save_overload(self, sig: Any, data: Any) -> None:
        with suppress(Exception), self._locked():  # a full disk: this process has its code, the next compiles again
            try:
                super().save_overload(sig, data)
            finally:  # what Ctrl-C, or the end of a process, left half written
                for part in Path(self.cache_path).glob(f"{glob.escape(self.base_name)}.*.tmp.*"):
                    part.unlink()


def njit(function: Callable[..., Any], *, fastmath: frozenset[str] = FAST, cache: bool = True, **options: Any) -> Any:
    """Compile `function` with Numba when it is first called, without the GIL, and keep the code on disk if possible."""
    dispatcher = numba.njit(nogil=True, error_model="numpy", fastmath=set(fastmath), **options)(function)
    compat.forget_callers(dispatcher)
    if cache:
        with suppress(RuntimeError, OSError):  # nowhere to write: every process compiles
            compat.keep_on_disk(dispatcher, SharedCache(function))
    return dispatcher


def inner(function: Callable[..., Any], **options: Any) -> Any:
    """Compile what only kernels call, and leave it to them to optimise it and to keep it on disk."""
    wrappers: dict[str, Any] = {"no_cpython_wrapper": True, "no_cfunc_wrapper": True}
    options = {"pipeline_class": compat.LinkedCompiler, **wrappers, **options}
    dispatcher = njit(function, cache=False, **options)
    compat.hide_from_python(dispatcher)
    return dispatcher


def cache_folder() -> Path | None:
    """Return where compiled code is kept between processes; None where no place for it can be written."""
    try:
        return Path(SharedCache(cache_folder).cache_path)
    except (RuntimeError, OSError):
        return None


# A fork in the middle of another thread's compilation would leave the child a lock that nobody opens.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=compat.global_compiler_lock.acquire,
        after_in_parent=compat.global_compiler_lock.release,
        after_in_child=compat.global_compiler_lock.release,
    )


def specialise(
    source: ModuleType, tag: str, body: Callable[..., Any], driver: Callable[..., Any], **replacements: Any
) -> SimpleNamespace:
    """Return `source`'s functions compiled: each is copied, and the copies call each other instead of the originals.

    `body` compiles the functions of one output element and `driver` the loops over them; `replacements` stand in for
    what the source calls by their names. A copy is named after its `tag`, because Numba keeps the code of two
    compilations of one name in one file and mixes them up.
    """
    namespace = {**vars(source), **replacements}
    for name, function in vars(source).items():
        if isinstance(function, FunctionType) and function.__module__ == source.__name__ and name not in replacements:
            copy = FunctionType(function.__code__, namespace, name, function.__defaults__)
            copy.__qualname__, copy.__module__ = f"{name}.{tag}", function.__module__
            namespace[name] = (body if is_body(name) else driver)(copy)
    return SimpleNamespace(**namespace)


def is_body(name: str) -> bool:
    return name.endswith("_at") or name in ("number", "zero", "multiply_add")


@intrinsic
def multiply_add(typing, a, b, c):
    """a·b + c, rounded once where the processor has an instruction for it."""

    def code(context, builder, signature, args):
        function_type = ir.FunctionType(args[0].type, [arg.type for arg in args])
        name = f"llvm.fmuladd.f{signature.return_type.bitwidth}"
        return builder.call(cgutils.get_or_insert_function(builder.module, function_type, name), args)

    return a(a, b, c), code


@intrinsic(prefer_literal=True)
def registers(typing, array, length):
    """An array of `length` numbers of the array's dtype on the stack: in registers, where all indices are constants."""
    kind, count = types.Array(array.dtype, 1, "C"), length.literal_value

    def code(context, builder, signature, args):
        number = context.get_data_type(kind.dtype)
        memory = cgutils.alloca_once(builder, ir.ArrayType(number, count))
        memory.align = 64
        data = builder.bitcast(memory, number.as_pointer())
        return c_array(context, builder, kind, data, (count,))

    return kind(array, length), code


def c_array(context, builder, kind, data, shape):
    """The C-contiguous array at an address, of a shape that is constant."""
    size = context.get_abi_sizeof(context.get_data_type(kind.dtype))
    strides = [size * math.prod(shape[i + 1 :]) for i in range(len(shape))]
    intp = context.get_value_type(types.intp)
    array = context.make_array(kind)(context, builder)
    constants = [[ir.Constant(intp, number) for number in numbers] for numbers in (shape, strides)]
    populate_array(array, data, *constants, ir.Constant(intp, size), meminfo=None)
    return compat.struct_value(array)
