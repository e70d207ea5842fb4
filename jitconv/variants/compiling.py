"""How Python loops become machine code here: Numba's flags, and a compile cache that many processes may share."""

import functools
import hashlib
import os
from collections.abc import Callable
from contextlib import nullcontext, suppress
from pathlib import Path
from types import FunctionType, ModuleType, SimpleNamespace
from typing import Any

import numba
from filelock import FileLock
from llvmlite import ir
from numba.core import cgutils
from numba.core.caching import (
    CompileResultCacheImpl,
    FunctionCache,
    InTreeCacheLocator,
    UserProvidedCacheLocator,
    UserWideCacheLocator,
)
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import Compiler
from numba.core.compiler_lock import global_compiler_lock
from numba.core.compiler_machinery import register_pass
from numba.core.typed_passes import NativeLowering
from numba.extending import intrinsic

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


class _KernelStamp:
    def get_source_stamp(self) -> bytes:
        return _kernel_sources()


class _CacheFiles(CompileResultCacheImpl):
    """Numba's usual places (NUMBA_CACHE_DIR, __pycache__, the user's cache folder), with the stamp above."""

    _locator_classes: Any = tuple(
        type(locator.__name__, (_KernelStamp, locator), {})
        for locator in (UserProvidedCacheLocator, InTreeCacheLocator, UserWideCacheLocator)
    )


class SharedCache(FunctionCache):
    """Numba's on-disk cache behind a file lock: without one, two processes can leave an index that names wrong code."""

    _impl_class = _CacheFiles

    def _locked(self) -> Any:
        folder = Path(self.cache_path)
        name = self._impl.filename_base
        return FileLock(folder / f"{name}.lock") if os.access(folder, os.W_OK) else nullcontext()

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
            super().save_overload(sig, data)


def njit(function: Callable[..., Any], *, fastmath: frozenset[str] = FAST, cache: bool = True, **options: Any) -> Any:
    """Compile `function` with Numba when it is first called, without the GIL, and keep the code on disk if possible."""
    dispatcher = numba.njit(nogil=True, error_model="numpy", fastmath=set(fastmath), **options)(function)
    if cache:
        with suppress(RuntimeError, OSError):  # nowhere to write: every process compiles
            dispatcher._cache = SharedCache(function)
    return dispatcher


class _LinkedCode(JITCodeLibrary):
    """Code that callers link: Numba would optimise and translate it on each of the levels between it and a kernel."""

    def _optimize_final_module(self) -> None:
        pass

    def _finalize_final_module(self) -> None:
        self._finalized = True


@register_pass(mutates_CFG=True, analysis_only=False)
class _LinkedLowering(NativeLowering):
    _name = "linked_lowering"

    def run_pass(self, state: Any) -> bool:
        state.library = _LinkedCode(state.targetctx.codegen(), state.func_id.func_qualname)
        state.flags.no_compile = True
        super().run_pass(state)
        fndesc = state.cr.fndesc

        def entry_point(*args: Any, **kwargs: Any) -> None:
            raise TypeError(f"{fndesc.qualname} is called by kernels only")

        state.cr = state.cr._replace(cfunc=entry_point)
        state.targetctx.insert_user_function(entry_point, fndesc, [state.library])
        return True


class _LinkedCompiler(Compiler):
    def define_pipelines(self) -> Any:
        pipelines = super().define_pipelines()
        for pipeline in pipelines:
            pipeline.passes = [(_LinkedLowering if p is NativeLowering else p, text) for p, text in pipeline.passes]
            pipeline.finalize()
        return pipelines


def inner(function: Callable[..., Any], **options: Any) -> Any:
    """Compile what only kernels call, and leave it to them to optimise it and to keep it on disk."""
    wrappers: dict[str, Any] = {"no_cpython_wrapper": True, "no_cfunc_wrapper": True}
    dispatcher = njit(function, cache=False, pipeline_class=_LinkedCompiler, **wrappers, **options)
    dispatcher._insert = lambda *args: None  # nothing that Python could call
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
        before=global_compiler_lock.acquire,
        after_in_parent=global_compiler_lock.release,
        after_in_child=global_compiler_lock.release,
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
