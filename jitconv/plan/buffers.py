"""Where the arrays of a plan lie: which memory each is a part of, and how memory is reused by lifetimes."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

ALIGNMENT = 64  # bytes: a cache line, and the widest register


@dataclass(eq=False)
class Buffer:
    """Memory of its own, from the step that first writes it to the last one that reads it.

    kind: "arena", a part of the plan's own memory; "input", "weight", "output" or "result" (of a torch step), found or
    made at each call, `key` says which. offset: within the arena, in bytes.
    """

    kind: str
    nbytes: int
    key: Any = None
    first: int = -1
    last: int = -1
    offset: int = 0

    def used(self, step: int) -> None:
        self.first = step if self.first < 0 else self.first
        self.last = max(self.last, step)


class Array(NamedTuple):
    """What a kernel is given for one of its arrays: `shape` numbers from `offset` bytes into a buffer, C-contiguous.

    blocked: the shape is (N, C/lanes, H, W, lanes), of an image (N, C, H, W).
    """

    buffer: Buffer
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    offset: int = 0
    blocked: bool = False

    @property
    def nbytes(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize


def new(shape: tuple[int, ...], dtype: Any, kind: str = "arena", key: Any = None, blocked: bool = False) -> Array:
    """An array with a buffer of its own."""
    dtype = np.dtype(dtype)
    nbytes = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    return Array(Buffer(kind, nbytes, key), tuple(shape), dtype, 0, blocked)


def assign(buffers: Iterable[Buffer]) -> int:
    """Give every buffer of the arena its offset, so that no two that live at one time overlap; return the bytes needed.

    The largest first, each at the lowest offset that is free during its life.
    """
    placed: list[Buffer] = []
    for buffer in sorted(buffers, key=lambda b: (-b.nbytes, b.first)):
        size = _aligned(buffer.nbytes)
        meets = [other for other in placed if other.first <= buffer.last and buffer.first <= other.last]
        offset = 0
        for other in sorted(meets, key=lambda b: b.offset):
            if offset + size <= other.offset:
                break
            offset = max(offset, other.offset + _aligned(other.nbytes))
        buffer.offset = offset
        placed.append(buffer)
    return max((buffer.offset + _aligned(buffer.nbytes) for buffer in placed), default=0)


def _aligned(nbytes: int) -> int:
    return -(-max(nbytes, 1) // ALIGNMENT) * ALIGNMENT
