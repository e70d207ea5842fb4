"""How a kernel gets onto the GPU: compiled once for each dtype and GPU, launched on torch's stream of the moment.

The only module that knows the back end's driver. numba-cuda compiles a kernel to PTX, cuda.core links it, and the
driver launches it with the tensors' addresses: no tensor is wrapped, nothing is copied, nothing waits. Everything else
about a launch is prepared when shapes are seen for the first time.
"""

import ctypes
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any, NamedTuple

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
_NOTHING = nullcontext()
MOST_CALLS = 4096  # that a thread keeps prepared


class _Call(NamedTuple):
    """A launch but for its arrays' addresses: the values of the parameters, the places of addresses among them."""

    code: Any
    values: Any
    addresses: list[int]
    pointers: Any  # to the values, as the driver wants them; kept because it is told their address only
    pointers_at: int


class _Thread(threading.local):
    """The calls that a host thread has prepared; their values are overwritten, so no other thread may use them."""

    def __init__(self) -> None:
        self.calls: dict[Any, _Call] = {}


_thread = _Thread()


class Kernel:
    """A function that many GPU threads run, with its machine code for every dtype and GPU that it has run on.

    Its arguments are C-contiguous arrays, the first of the dtype computed in, ints, floats (which take that dtype)
    and tuples of these: torch tensors on a GPU, NumPy arrays in Numba's simulator.
    """

    def __init__(self, function: Callable[..., None]) -> None:
        self.function = function
        self._loaded: dict[Any, Any] = {}

    def launch(self, blocks: Blocks, threads: int, *args: Any) -> None:
        """Start blocks[0] × blocks[1] × blocks[2] blocks of `threads` threads, and return at once."""
        if SIMULATED:
            cuda.jit(self.function)[blocks, threads](*args)
            return
        addresses: list[int] = []
        key: list[Any] = [self]
        _collect(args, addresses, key)
        gpu = args[0].get_device()
        with _NOTHING if gpu == torch.cuda.current_device() else torch.cuda.device(gpu):
            call = _thread.calls.get((gpu, *key)) or self._prepare((gpu, *key), args)
            for place, address in zip(call.addresses, addresses, strict=True):
                call.values[place] = address
            stream = torch._C._cuda_getCurrentRawStream(gpu)
            _check(driver.cuLaunchKernel(call.code, *blocks, threads, 1, 1, 0, stream, call.pointers_at, 0))

    def ptx(self, capability: Capability, *args: Any) -> str:
        """Return the kernel's assembly for these arguments and a compute capability such as (9, 0); needs no GPU."""
        signature = types.void(*(_type(arg, _NUMBA[args[0].dtype]) for arg in args))
        return cuda.compile(self.function, signature, device=False, cc=capability, abi="numba")[0]

    def _prepare(self, key: Args, args: Args) -> _Call:
        _use_context(args[0].device)
        layout, fields = parameters(args), list(_fields(args))
        values = (ctypes.c_int64 * len(fields)).from_buffer_copy(layout.pack(*[value for value, _ in fields]))
        addresses = [place for place, (_, is_address) in enumerate(fields) if is_address]
        base = ctypes.addressof(values)
        pointers = (ctypes.c_void_p * len(values))(*range(base, base + layout.size, SLOT))
        if len(_thread.calls) >= MOST_CALLS:
            _thread.calls.clear()
        call = _Call(self._code(args), values, addresses, pointers, ctypes.addressof(pointers))
        _thread.calls[key] = call
        return call

    def _code(self, args: Args) -> Any:
        """Return the machine code for the dtype and the GPU of these arguments.

        Raises RuntimeError while a CUDA graph is captured, which cannot load code.
        """
        key = args[0].dtype, args[0].device
        if key not in self._loaded:
            if torch.cuda.is_current_stream_capturing():
                raise RuntimeError(
                    f"{self.function.__name__} must have run on {args[0].dtype} before a CUDA graph is captured, "
                    "because its code cannot be loaded meanwhile: take a step before"
                )
            with _lock:
                if key not in self._loaded:
                    capability = torch.cuda.get_device_capability(args[0].device)
                    self._loaded[key] = _load(self.ptx(capability, *args), capability)
        return self._loaded[key]

    def launch_for(self, elements: int, *args: Any) -> None:
        """Start a thread for each of so many elements, and perhaps some more."""
        self.launch((max(1, ceil_div(elements, THREADS)), 1, 1), THREADS, *args)


class PerElement(Kernel):
    """A kernel that shares out the elements of its last argument to the threads of as many blocks as they need."""

    def __call__(self, *args: Any) -> None:
        self.launch_for(min(size(args[-1]), MOST_BLOCKS * THREADS), *args)


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
    """Return how the values of `_fields` are laid out in memory."""
    real = "f4x" if args[0].dtype == torch.float32 else "d"
    return struct.Struct("=" + "".join(real if isinstance(value, float) else "q" for value, _ in _fields(args)))


def _fields(args: Args) -> Iterator[tuple[int | float, bool]]:
    """The numbers that a kernel takes, five and two for each dimension of an array, and whether each is an address."""
    for arg in args:
        if isinstance(arg, torch.Tensor):
            item = arg.element_size()
            yield from ((number, False) for number in (0, 0, arg.numel(), item))
            yield arg.data_ptr(), True
            yield from ((number, False) for number in (*arg.shape, *(stride * item for stride in arg.stride())))
        elif isinstance(arg, tuple):
            yield from _fields(arg)
        else:
            yield arg, False


def _collect(args: Args, addresses: list[int], key: list[Any]) -> None:
    """Gather what differs between launches of a kernel: the addresses of arrays, and what else its parameters hold."""
    for arg in args:
        if isinstance(arg, torch.Tensor):
            addresses.append(arg.data_ptr())
            key += arg.dtype, arg.shape
        elif isinstance(arg, tuple):
            _collect(arg, addresses, key)
        else:
            key.append(arg)


def _use_context(device: torch.device) -> None:
    """Make the GPU's own context, the one that torch uses, current in a thread in which torch has not yet done so."""
    if not int(_check(driver.cuCtxGetCurrent())):
        _check(
            driver.cuCtxSetCurrent(_check(driver.cuDevicePrimaryCtxRetain(_check(driver.cuDeviceGet(device.index)))))
        )


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
