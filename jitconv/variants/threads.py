"""How many cores a kernel may use: as many as torch does, and never in a way that can end the process."""

import os
import threading
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import numba
import torch

from jitconv import compat

_launch_lock = threading.Lock()
_launched = False
_forked = False
_turns: Any = nullcontext()  # taken around every parallel kernel; a lock where Numba's threads serve one caller only


def _mark_forked() -> None:
    # GNU OpenMP kills a forked child at its first parallel region (and hangs a grandchild): one core there.
    global _forked
    _forked = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_mark_forked)


def count() -> int:
    """Return the number of cores a kernel called now may use: torch.get_num_threads(), or 1 in a forked process."""
    return 1 if _forked else min(torch.get_num_threads(), numba.config.NUMBA_NUM_THREADS)  # type: ignore[attr-defined]


def _launch() -> None:
    """Start Numba's threads, once; doing so sets torch's own thread count to 1, so put that back."""
    global _launched, _turns
    with _launch_lock:
        if not _launched:
            before = torch.get_num_threads()
            compat.launch_numba_threads()
            torch.set_num_threads(before)
            if numba.threading_layer() == "workqueue":  # aborts the process when two threads use it at once
                _turns = threading.RLock()
            _launched = True


class Kernel:
    """One loop nest compiled twice: `serial` for one core, `parallel` (Numba's prange) for several."""

    def __init__(self, serial: Callable[..., Any], parallel: Callable[..., Any]) -> None:
        self.serial = self.alone = serial
        self.parallel = parallel

    def shared(self, threads: int, *args: Any) -> None:
        """Run on Numba's threads; their number is for kernels that share out their work themselves."""
        self.parallel(*args)

    def __call__(self, *args: Any) -> None:
        threads = count()
        if threads == 1:
            self.alone(*args)
            return
        if not _launched:
            _launch()
        with _turns:
            before = numba.get_num_threads()
            numba.set_num_threads(threads)
            try:
                self.shared(threads, *args)
            finally:
                numba.set_num_threads(before)


def layer() -> str:
    """Return the name of Numba's threading layer, starting its threads if need be."""
    if not _launched:
        _launch()
    return str(numba.threading_layer())
