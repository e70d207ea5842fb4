"""Arrays that kernels make of weights, kept beside the tensors as long as neither changes.

A weight is known by its storage, address, shape and version. Writing through `tensor.data` or a NumPy array that shares
its memory does not raise the version: call `forget` after that.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from jitconv.compat import StorageWeakRef, identity, version

Pack = Callable[[np.ndarray], Any]

_packed: dict[Any, tuple[StorageWeakRef, int, Any]] = {}


def packed(tensor: torch.Tensor, array: np.ndarray, pack: Pack) -> Any:
    """Return pack(array) for the array that shares the tensor's memory, made anew where the tensor has changed."""
    if tensor.is_inference():  # has no version
        return pack(array)
    storage = tensor.untyped_storage()
    key = identity(storage), tensor.data_ptr(), array.shape, array.dtype, pack
    found = _packed.get(key)
    if found is not None and found[1] == version(tensor):
        return found[2]
    for other in [other for other, (owner, _, _) in list(_packed.items()) if owner.expired()]:
        _packed.pop(other, None)
    result = pack(array)
    _packed[key] = StorageWeakRef(storage), version(tensor), result
    return result


def forget() -> None:
    """Pack every weight anew at its next use."""
    _packed.clear()
