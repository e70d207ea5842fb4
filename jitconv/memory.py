"""Memory of results: large ones are in huge pages (46 MB are written in 3 ms, not in 17)."""

import ctypes
import functools
import mmap
import sys
from collections.abc import Callable
from typing import Any

import torch

LARGE = 32 << 20  # bytes: what is larger, glibc always takes fresh from the kernel
_LIBRARY = ctypes.CDLL(None) if sys.platform == "linux" else None
_MADVISE = getattr(_LIBRARY, "madvise", None)
_HUGE = getattr(mmap, "MADV_HUGEPAGE", None)


def prefer_huge_pages(tensor: torch.Tensor) -> torch.Tensor:
    """Return a new tensor whose memory, if it is large and on the CPU, may be mapped in huge pages (Linux).

    What the kernel answers does not matter: without them the pages are small.
    """
    if tensor.nbytes >= LARGE and _MADVISE and _HUGE is not None and tensor.is_cpu:
        first = -(-tensor.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
        length = tensor.data_ptr() + tensor.nbytes - first
        _MADVISE(ctypes.c_void_p(first), ctypes.c_size_t(length), ctypes.c_int(_HUGE))
    return tensor


def empty_like(prototype: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return what makes tensors like this one from it: torch.empty_like, and huge pages where they are large."""
    if prototype.nbytes < LARGE:
        return torch.empty_like
    return lambda like: prefer_huge_pages(torch.empty_like(like))


@functools.lru_cache(maxsize=1024)
def memory_of(size: int) -> Callable[[int], Any]:
    """Return what gives, for an address, the buffer of so many bytes that lies there; it does not keep it alive."""
    return (ctypes.c_char * size).from_address
