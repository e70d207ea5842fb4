"""How a kernel gets onto the GPU: compiled by numba.cuda for the types it is called with, on torch's current stream.

Tensors are handed over by their addresses (`__cuda_array_interface__`): nothing is copied, and nothing waits.
"""

import warnings
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from numba import cuda

from jitconv.variants.cuda.sizes import SIMULATED, THREADS, ceil_div

device = cuda.jit(device=True, inline="always")  # for functions that kernels call: they become part of the kernel

# Numba warns at every launch of fewer than 128 blocks, which is what small layers need.
warnings.filterwarnings("ignore", r"Grid size \d+ will likely")


class Kernel:
    """A function that many GPU threads run; it has no result, and fills arrays.

    Its arguments are C-contiguous arrays, the first of the dtype computed in, ints, tuples of ints, and floats, which
    take that dtype. Arrays are tensors on one GPU, or NumPy's in Numba's simulator.
    """

    def __init__(self, function: Callable[..., None]) -> None:
        self.function = function
        self._dispatcher = cuda.jit(function)

    def launch(self, grid: tuple[int, int], threads: int, *args: Any) -> None:
        """Start grid[0] × grid[1] blocks of `threads` threads, and return at once.

        What Numba has not yet compiled cannot be recorded in a CUDA graph: call it once before.
        """
        with nullcontext() if SIMULATED else torch.cuda.device(args[0].device):
            # The stream is asked for each time: a CUDA graph is recorded on one of its own.
            stream = 0 if SIMULATED else cuda.external_stream(torch.cuda.current_stream().cuda_stream)
            self._dispatcher[grid, threads, stream](*[argument(arg, args[0]) for arg in args])

    def launch_for(self, elements: int, *args: Any) -> None:
        """Start a thread for each of so many elements, and perhaps some more."""
        self.launch((max(1, ceil_div(elements, THREADS)), 1), THREADS, *args)


def argument(arg: Any, first: Any) -> Any:
    """Return what Numba takes for an argument of a kernel."""
    if isinstance(arg, torch.Tensor):
        return cuda.as_cuda_array(arg.detach(), sync=False)  # a tensor with a gradient has no such interface
    if isinstance(arg, float):
        return np.float32(arg) if first.dtype.itemsize == 4 else np.float64(arg)
    return arg


def empty_like(array: Any, shape: tuple[int, ...]) -> Any:
    """Return uninitialised memory of an array's kind, dtype and device."""
    return array.new_empty(shape) if isinstance(array, torch.Tensor) else np.empty(shape, array.dtype)


def size(array: Any) -> int:
    """Return the number of elements of a NumPy array or a tensor."""
    return array.numel() if isinstance(array, torch.Tensor) else array.size
