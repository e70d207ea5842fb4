"""What is made of weights, packed or folded, kept beside the tensors as long as none of them changes.

A weight is known by its storage, address, shape and version. Writing through `tensor.data` or a NumPy array that shares
its memory does not raise the version: call `forget` after that.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from jitconv.compat import StorageWeakRef, identity, version

Pack = Callable[[np.ndarray], Any]

_cache: dict[Any, tuple[list[StorageWeakRef], tuple[int, ...], Any]] = {}


def packed(tensor: torch.Tensor, array: np.ndarray, pack: Pack) -> Any:
    """Return pack(array) for the array that shares the tensor's memory, made anew where the tensor has changed."""
    return cached((tensor,), (pack, array.shape, array.dtype), lambda: pack(array))


def cached(tensors: Sequence[torch.Tensor], what: Any, make: Callable[[], Any]) -> Any:
    """Return make(), made anew where one of the tensors has changed; `what` is its name among all that is made of them.

    What is made must not share memory with the tensors, or these would be kept too.
    """
    if any(tensor.is_inference() for tensor in tensors):  # has no version
        return make()
    storages = [tensor.untyped_storage() for tensor in tensors]
    key = what, *[(identity(s), t.data_ptr()) for s, t in zip(storages, tensors)]  # noqa: B905 (0.2 µs)
    versions = tuple(map(version, tensors))
    found = _cache.get(key)
    if found is not None and found[1] == versions:
        return found[2]
    for other in [other for other, (owners, _, _) in list(_cache.items()) if any(owner.expired() for owner in owners)]:
        _cache.pop(other, None)
    result = make()
    _cache[key] = [*map(StorageWeakRef, storages)], versions, result
    return result


def forget() -> None:
    """Make everything anew at its next use."""
    _cache.clear()
