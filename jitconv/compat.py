"""Every name of torch and Numba that is not part of their documented interface, and why jitconv stands on it.

Tested with torch 2.13 and Numba 0.68, with torch 2.8 and Numba 0.65, and with torch 2.15; pyproject.toml bounds both.
No other module imports such a name or reaches for one as an attribute (tests/test_compat.py), so this is the file to
look at when either of them moves.
"""

import copy
import ctypes
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch._prims_common as _prims_common
from llvmlite import binding
from numba.core.caching import (
    CompileResultCacheImpl,
    FunctionCache,
    IndexDataCacheFile,
    InTreeCacheLocator,
    UserProvidedCacheLocator,
    UserWideCacheLocator,
)
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import Compiler
from numba.core.compiler_lock import global_compiler_lock as global_compiler_lock  # forks wait for it (compiling.py)
from numba.core.compiler_machinery import register_pass
from numba.core.registry import cpu_target
from numba.core.typed_passes import NativeLowering
from numba.np.ufunc import parallel
from torch.autograd import forward_ad
from torch.compiler import is_compiling
from torch.multiprocessing.reductions import StorageWeakRef as StorageWeakRef  # undocumented
from torch.utils import _pytree

# torch: what a call must ask before it may go straight to a kernel
any_requires_grad = torch._C._any_requires_grad  # whether one of the arguments needs a gradient
tracing_state = torch._C._get_tracing_state  # not None inside torch.jit.trace
dispatch_modes = torch._C._len_torch_dispatch_stack  # how many TorchDispatchModes are active
transform = torch._C._functorch.peek_interpreter_stack  # not None inside torch.func.grad, vmap and so on
profiling = torch._C._autograd._profiler_enabled  # whether torch.profiler runs; there is no public way to ask
is_legacy_batchedtensor = torch._C._functorch.is_legacy_batchedtensor  # of is_grads_batched=True; looks like any tensor
pytree = _pytree  # nested tuples, lists and dicts, as torch.export and torch.func see them
TENSOR_TYPES = torch.Tensor, torch.nn.Parameter  # no subclasses, whose __torch_function__ would want to be asked
implicit_softmax_dim = torch.nn.functional._get_softmax_dim  # type: ignore[attr-defined]  # what dim=None means


def in_forward_mode() -> bool:
    """Return whether a forward-mode derivative is being taken, which an autograd.Function must be asked about."""
    return forward_ad._current_level >= 0  # torch.autograd.forward_ad offers no way to ask


def is_observed() -> bool:
    """Return whether somebody wants to see every operator: a compiler, a transform, a mode, a trace or a profiler."""
    return (
        is_compiling() or transform() is not None or dispatch_modes() > 0 or tracing_state() is not None or profiling()
    )


def is_special(value: Any) -> bool:
    """Return whether a value is a tensor that only torch's dispatcher knows how to compute with."""
    return isinstance(value, torch.Tensor) and (
        type(value) not in TENSOR_TYPES or value.is_meta or is_legacy_batchedtensor(value)
    )


def is_channels_last(value: Any) -> bool:
    """Return whether torch's layers take a value for images (N, C, H, W) whose channels lie side by side in memory."""
    if not isinstance(value, torch.Tensor) or value.ndim != 4 or value.stride(1) > value.stride(3):
        return False
    return _prims_common.suggest_memory_format(value) == torch.channels_last


def constant_while_compiling(function: Callable[..., Any]) -> Callable[..., Any]:
    """Let Dynamo run the function as it traces, as torch.compiler.assume_constant_result does.

    That loads Dynamo, which takes a second, sets an environment variable and patches torch.manual_seed.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


def apply_of(function: type[torch.autograd.Function]) -> Callable[..., Any]:
    """Return function.apply without torch's checks for transforms of torch.func, a third of its time."""
    return super(torch.autograd.Function, function).apply  # type: ignore[misc]  # of torch._C._FunctionBase


def identity(storage: torch.UntypedStorage) -> int:
    """Return a number that no other storage has as long as a StorageWeakRef to this one lives."""
    return storage._cdata


def version(tensor: torch.Tensor) -> int:
    """Return how often the tensor was written to in place; there is no public name for it."""
    return tensor._version


def schema_of(operator: Any) -> Any:
    """Return the names and types of a torch operator's arguments and results, parsed by torch."""
    return operator._schema


def tables_of(module: torch.nn.Module) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Return a module's own parameters, buffers and modules by name, as it keeps them: None where one was left out."""
    return module._parameters, module._buffers, module._modules


def compiled_in_two(graph: Any, example: Any, **compilers: Callable[..., Any]) -> Callable[..., Any]:
    """Return a graph of Dynamo's with AOTAutograd's forward and backward compiled by `fw_compiler` and its kin."""
    from torch._dynamo.backends.common import aot_autograd  # takes seconds to import

    return aot_autograd(**compilers)(graph, example)


def boxed(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function as AOTAutograd calls it, with one list of arguments."""
    from torch._functorch.aot_autograd import make_boxed_func

    return make_boxed_func(function)


def fake_mode() -> Any:
    """Return the mode in which tensors have shapes and no numbers, as torch.export's and Dynamo's do."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    return FakeTensorMode(allow_non_fake_inputs=True)


def edge_padding(convolution: torch.nn.Conv2d) -> Any:
    """Return the padding of a convolution that does not pad with zeros, as torch.nn.functional.pad takes it."""
    return convolution._reversed_padding_repeated_twice


def openmp_of_torch() -> dict[str, int] | None:
    """Return the addresses of GOMP_parallel and its like in the OpenMP runtime that torch runs on; None without one.

    Another copy of that runtime may be loaded too, with threads of its own, so this asks for what torch is linked to.
    """
    names = "GOMP_parallel", "GOMP_barrier", "omp_get_thread_num", "omp_get_num_threads"
    try:
        linked = ctypes.CDLL(torch._C.__file__)  # already loaded; finds what the libraries that it needs have
        addresses = {name: ctypes.cast(getattr(linked, name), ctypes.c_void_p).value or 0 for name in names}
        same = linked.omp_get_max_threads() == torch.get_num_threads()
    except (OSError, AttributeError):
        return None
    return addresses if same else None


# Numba: what it compiles for, and its threads --------------------------------------------------------------
def target() -> tuple[str, str, frozenset[str]]:
    """Return the triple, the name and the features of the processor that Numba compiles for, its caches' key."""
    triple, cpu, features = cpu_target.target_context.codegen().magic_tuple()
    return triple, cpu, frozenset(features.split(","))


def launch_numba_threads() -> None:
    """Start Numba's threads, which its public functions do only on the way to something else."""
    parallel._launch_threads()


def struct_value(proxy: Any) -> Any:
    """Return the LLVM value of a struct proxy of Numba (an array, say), as the examples of numba.extending do."""
    return proxy._getvalue()


# Numba: what failed to compile ------------------------------------------------------------------------------
class _Failures(dict[Any, Exception]):
    """Errors without their tracebacks, whose frames hold the arrays and the model of whoever made Numba compile.

    A function that takes a constant is tried with any number first, which fails, and Numba keeps the error for ever.
    """

    def __setitem__(self, key: Any, error: Exception) -> None:
        super().__setitem__(key, copy.copy(error))

    def __getitem__(self, key: Any) -> Exception:
        return copy.copy(super().__getitem__(key))  # Numba raises it, which gives it a traceback


def forget_callers(dispatcher: Any) -> None:
    """Let a function that is not compiled yet hold on to nothing of its callers."""
    dispatcher._compiler._failed_cache = _Failures()


# Numba: code on disk ---------------------------------------------------------------------------------------
class _CodeBeforeIndex(IndexDataCacheFile):
    """The files of a function's cache, where an index never names code that is not yet there.

    Numba writes the index first. Cut short after that, it names a file of older code, which the next process runs.
    """

    def save(self, key: Any, data: Any) -> None:
        overloads = self._load_index()
        if not overloads:
            self.flush()  # an index of older code may name the file that is written now
        names = (self._data_name(number) for number in itertools.count(1))
        name = overloads.get(key) or next(name for name in names if name not in overloads.values())
        self._save_data(name, data)
        self._save_index({**overloads, key: name})


def cache_class(stamp: Callable[[], bytes], trusts: Callable[[Path], bool]) -> Any:
    """Return the class of a function's cache on disk, whose code is stale when `stamp` no longer returns the same.

    It lies where Numba's own does (NUMBA_CACHE_DIR, __pycache__, the user's cache folder), if `trusts` that folder.
    """

    class Trusted:
        @classmethod
        def from_function(cls, function: Any, file: str) -> Any:
            locator = super().from_function(function, file)  # type: ignore[misc]
            return locator if locator is not None and trusts(Path(locator.get_cache_path())) else None

        def get_source_stamp(self) -> bytes:
            return stamp()

    class Files(CompileResultCacheImpl):
        _locator_classes: Any = tuple(
            type(locator.__name__, (Trusted, locator), {})
            for locator in (UserProvidedCacheLocator, InTreeCacheLocator, UserWideCacheLocator)
        )

    class Cache(FunctionCache):
        _impl_class = Files

        def __init__(self, function: Any) -> None:
            super().__init__(function)
            self._cache_file = _CodeBeforeIndex(self._cache_path, self.base_name, stamp())

        @property
        def base_name(self) -> str:
            """The name of the function's files without their endings."""
            return self._impl.filename_base

    return Cache


def keep_on_disk(dispatcher: Any, cache: Any) -> None:
    """Give a function that is not compiled yet its cache on disk, as numba.njit(cache=True) does."""
    dispatcher._cache = cache


# Numba: code that only other code calls ----------------------------------------------------------------------
class _LinkedCode(JITCodeLibrary):
    """Code that callers link: Numba would optimise and translate it on each of the levels between it and a kernel."""

    def _optimize_final_module(self) -> None:
        pass

    def _finalize_final_module(self) -> None:
        self._finalized = True


@register_pass(mutates_CFG=True, analysis_only=False)
class _LinkedLowering(NativeLowering):
    _name, code = "linked_lowering", _LinkedCode

    def run_pass(self, state: Any) -> bool:
        state.library = self.code(state.targetctx.codegen(), state.func_id.func_qualname)
        state.flags.no_compile = True
        super().run_pass(state)
        fndesc = state.cr.fndesc

        def entry_point(*args: Any, **kwargs: Any) -> None:
            raise TypeError(f"{fndesc.qualname} is called by kernels only")

        state.cr = state.cr._replace(cfunc=entry_point)
        state.targetctx.insert_user_function(entry_point, fndesc, [state.library])
        return True


def _lowered_by(lowering: Any, pipelines: Any) -> Any:
    for pipeline in pipelines:
        pipeline.passes = [(lowering if p is NativeLowering else p, text) for p, text in pipeline.passes]
        pipeline.finalize()
    return pipelines


class LinkedCompiler(Compiler):
    """Numba's compiler for functions that callers link (`compiling.inner`)."""

    def define_pipelines(self) -> Any:
        return _lowered_by(_LinkedLowering, super().define_pipelines())


# Numba: loops vectorised before they are unrolled -------------------------------------------------------------
class _VectorsFirst(JITCodeLibrary):
    """Code whose short loops of constant length become vector instructions; Numba's passes would unroll them first.

    A loop of 24 unrolled is 24 statements, which LLVM's loop vectoriser does not see. Vectorised it is three, and
    unrolled then, what it adds up stays in registers.
    """

    def _optimize_functions(self, module: Any) -> None:
        module.data_layout = self._codegen._data_layout

    def _optimize_final_module(self) -> None:
        self._pass(*self._codegen._module_pass_manager(opt=0, loop_vectorize=False, slp_vectorize=False, cost="cheap"))
        tuning = binding.create_pipeline_tuning_options(3)
        tuning.loop_vectorization, tuning.slp_vectorization, tuning.loop_unrolling = True, False, False
        builder = binding.create_pass_builder(self._codegen._tm, tuning)
        self._pass(builder.getModulePassManager(), builder)
        self._pass(*self._codegen._module_pass_manager())

    def _pass(self, manager: Any, builder: Any) -> None:
        manager.run(self._final_module, builder)


class _LinkedVectorsFirst(_LinkedCode):
    _optimize_functions = _VectorsFirst._optimize_functions


@register_pass(mutates_CFG=True, analysis_only=False)
class _VectorsFirstLowering(NativeLowering):
    _name = "vectors_first_lowering"

    def run_pass(self, state: Any) -> bool:
        state.library = _VectorsFirst(state.targetctx.codegen(), state.func_id.func_qualname)
        state.library.enable_object_caching()
        return super().run_pass(state)


@register_pass(mutates_CFG=True, analysis_only=False)
class _LinkedVectorsFirstLowering(_LinkedLowering):
    _name, code = "linked_vectors_first_lowering", _LinkedVectorsFirst


class VectorsFirstCompiler(Compiler):
    """Numba's compiler for kernels whose short loops are vectorised before they are unrolled."""

    def define_pipelines(self) -> Any:
        return _lowered_by(_VectorsFirstLowering, super().define_pipelines())


class LinkedNoAliasCompiler(LinkedCompiler):
    """Numba's compiler for functions that callers link, no two of whose arrays share memory."""

    def define_pipelines(self) -> Any:
        self.state.flags.noalias = True
        return super().define_pipelines()


class LinkedVectorsFirstCompiler(Compiler):
    """For functions that kernels of the VectorsFirstCompiler link, no two of whose arrays share memory."""

    def define_pipelines(self) -> Any:
        self.state.flags.noalias = True
        return _lowered_by(_LinkedVectorsFirstLowering, super().define_pipelines())


def hide_from_python(dispatcher: Any) -> None:
    """Let a function of the LinkedCompiler be without an entry for Python, which has nothing to call."""
    dispatcher._insert = lambda *args: None
