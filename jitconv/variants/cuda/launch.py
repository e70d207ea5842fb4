"""How a kernel gets onto the GPU: compiled once for each dtype and GPU, launched on torch's stream of the moment.

The only module that knows the back end's driver. numba-cuda compiles a kernel to PTX, cuda.core links it, and the
driver launches it with the tensors' addresses: no tensor is wrapped, nothing is copied, nothing waits.
"""

import ctypes
import struct
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from cuda.bindings import driver
from cuda.core import Program, ProgramOptions
from numba import cuda, types

from jitconv.variants.cuda.sizes import MOST_BLOCKS, SIMULATED, THREADS, ceil_div

Args = tuple[Any, ...]
Blocks = tuple[int, int, int]
Capability = tuple[int, int]

device = cuda.jit(device=True, inline="always")  # for functions that kernels call: they become part of the kernel
_NUMBA: dict[torch.dtype, Any] = {torch.float32: types.float32, torch.float64: types.float64, torch.int64: types.int64}
_lock = threading.Lock()


class Kernel:
    """A function that many GPU threads run, with its machine code for every dtype and GPU that it has run on.

    Its arguments are C-contiguous arrays, the first of the dtype computed in, ints, floats (which take that dtype)
    and tuples of these: torch tensors on a GPU, NumPy arrays in Numba's simulator.
    """

    def __init__(self, function: Callable[..., None]) -> None:
        self.function = function
        self._loaded: dict[Any, tuple[Any, struct.Struct]] = {}

    def launch(self, blocks: Blocks, threads: int, *args: Any) -> None:
        """Start blocks[0] × blocks[1] × blocks[2] blocks of `threads` threads, and return at once."""
        if SIMULATED:
            cuda.jit(self.function)[blocks, threads](*args)
            return
        first = next(arrays(args))
        with torch.cuda.device(first.device):
            code, layout = self._code(first, args)
            values = ctypes.create_string_buffer(layout.pack(*_values(args)), layout.size)
            base = ctypes.addressof(values)
            pointers = (ctypes.c_void_p * (layout.size // SLOT))(*range(base, base + layout.size, SLOT))
            stream = torch.cuda.current_stream().cuda_stream
            _check(driver.cuLaunchKernel(code, *blocks, threads, 1, 1, 0, stream, ctypes.addressof(pointers), 0))

    def ptx(self, capability: Capability, *args: Any) -> str:
        """Return the kernel's assembly for these arguments and a compute capability such as (9, 0); needs no GPU."""
        signature = types.void(*(_type(arg, _NUMBA[next(arrays(args)).dtype]) for arg in args))
        return cuda.compile(self.function, signature, device=False, cc=capability, abi="numba")[0]

    def _code(self, first: torch.Tensor, args: Args) -> tuple[Any, struct.Struct]:
        key = first.dtype, first.device.index
        if key not in self._loaded:
            with _lock:
                capability = torch.cuda.get_device_capability(first.device)
                self._loaded[key] = _load(self.ptx(capability, *args), capability), parameters(args)
        return self._loaded[key]

    def launch_for(self, elements: int, *args: Any) -> None:
        """Start a thread for each of so many elements, and perhaps some more."""
        self.launch((max(1, ceil_div(elements, THREADS)), 1, 1), THREADS, *args)


class PerElement(Kernel):
    """A kernel that shares out the elements of its last argument to the threads of as many blocks as they need."""

    def __call__(self, *args: Any) -> None:
        self.launch_for(min(size(args[-1]), MOST_BLOCKS * THREADS), *args)


def arrays(args: Args) -> Iterator[Any]:
    """Yield the arrays among the arguments, those in tuples too."""
    for arg in args:
        if isinstance(arg, tuple):
            yield from arrays(arg)
        elif hasattr(arg, "shape"):
            yield arg


def empty_like(array: Any, shape: tuple[int, ...]) -> Any:
    """Return uninitialised memory of an array's kind, dtype and device."""
    return array.new_empty(shape) if isinstance(array, torch.Tensor) else np.empty(shape, array.dtype)


def size(array: Any) -> int:
    """Return the number of elements of a NumPy array or a tensor."""
    return array.numel() if isinstance(array, torch.Tensor) else array.size


# Numba's own layout of a kernel's parameters: each takes a slot of eight bytes -----------------------------

SLOT = 8


def _type(arg: Any, real: types.Type) -> types.Type:
    """The Numba type of an argument; Python floats become `real`."""
    if isinstance(arg, torch.Tensor):
        return types.Array(_NUMBA[arg.dtype], arg.ndim, "C")
    if isinstance(arg, tuple):
        return types.BaseTuple.from_types([_type(each, real) for each in arg], type(arg))
    return real if isinstance(arg, float) else types.int64


def parameters(args: Args) -> struct.Struct:
    """Return how `_values` are laid out in memory."""
    real = "f4x" if next(arrays(args)).dtype == torch.float32 else "d"
    return struct.Struct("=" + "".join(real if isinstance(value, float) else "q" for value in _values(args)))


def _values(args: Args) -> Iterator[int | float]:
    """The arguments as the numbers that a kernel takes: five and two for each dimension of an array."""
    for arg in args:
        if isinstance(arg, torch.Tensor):
            item = arg.element_size()
            yield from (0, 0, arg.numel(), item, arg.data_ptr(), *arg.shape)
            yield from (stride * item for stride in arg.stride())
        elif isinstance(arg, tuple):
            yield from _values(arg)
        else:
            yield arg


def _load(ptx: str, capability: Capability) -> Any:
    """Link the assembly of one kernel and return the driver's handle of it, good in every context."""
    program = Program(ptx, "ptx", ProgramOptions(arch=f"sm_{capability[0]}{capability[1]}"))
    library = _check(driver.cuLibraryLoadData(program.compile("cubin").code, [], [], 0, [], [], 0))
    (kernel,) = _check(driver.cuLibraryEnumerateKernels(1, library))
    return driver.CUfunction(int(kernel))


def _check(answer: tuple[Any, ...]) -> Any:
    """The driver's result without its error code; RuntimeError names a failure."""
    error, *results = answer
    if error.value:
        raise RuntimeError(f"the CUDA driver answered {error.name}")
    return results[0] if results else None
