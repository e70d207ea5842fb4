"""How many cores a kernel may use, as many as torch does, and whose threads: torch's own, where that can be.

Two pools of threads in one process take each other's cores, because each waits for its next work by spinning. torch's
pool is OpenMP's; where torch was built without it, Numba's threads do the work.
"""

import os
import threading
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, NamedTuple

import numba
import torch

from jitconv import compat
from jitconv.variants.workers import ALONE, start_on_numba, start_on_torch, team_on_torch


class Pool(NamedTuple):
    """Threads that run workers: their name, the address of what starts workers on them, and a lock where they need it.

    Numba's layer `workqueue` ends the process when two threads use it at once; the others, and torch's, do not.
    team: see team_on_torch.
    """

    name: str
    start: int
    guard: Any
    team: tuple[int, int] = (0, 0)


_pool: Pool | None = None
_making = threading.Lock()
_forked = False


def _mark_forked() -> None:
    # GNU OpenMP kills a forked child at its first parallel region (and hangs a grandchild): one core there.
    global _forked
    _forked = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_mark_forked)


def count() -> int:
    """Return the number of cores a kernel called now may use: torch.get_num_threads(), or 1 in a forked process."""
    return 1 if _forked else torch.get_num_threads()


def pool() -> Pool:
    """Return the threads that kernels run on, which the first call finds, and starts if they are Numba's."""
    global _pool
    if _pool is None:
        with _making:
            if _pool is None:
                start = start_on_torch()
                if start is None:
                    _pool = _numba_pool()
                else:
                    _pool = Pool("torch's OpenMP", start, nullcontext(), team_on_torch())
    return _pool


def _numba_pool() -> Pool:
    before = torch.get_num_threads()
    compat.launch_numba_threads()
    torch.set_num_threads(before)  # which starting Numba's may have set to 1
    layer = numba.threading_layer()
    return Pool(f"Numba's {layer}", start_on_numba(), threading.RLock() if layer == "workqueue" else nullcontext())


class Kernel:
    """A compiled function of (start, workers, *args), shared out to as many workers as torch has threads.

    `start` is the address that each_worker takes (workers.py): of the pool's, or ALONE.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function

    def run(self, start: int, workers: int, *args: Any) -> None:
        self.function(start, workers, *args)

    def alone(self, *args: Any) -> None:
        """Run on the calling thread, whatever torch's number of threads."""
        self.run(ALONE, 1, *args)

    def __call__(self, *args: Any) -> None:
        workers = count()
        if workers == 1:
            self.run(ALONE, 1, *args)
        else:
            threads = pool()
            with threads.guard:
                self.run(threads.start, workers, *args)


def layer() -> str:
    """Return the name of the threads that kernels run on, starting them if need be."""
    return pool().name
