"""Sharing out a kernel: every worker runs once, and what fails in one is raised by the kernel."""

import numpy as np
import pytest
import torch

from jitconv import compat
from jitconv.variants.compiling import inner, njit
from jitconv.variants.workers import ALONE, each_worker, portion, start_on_numba, start_on_torch


@inner
def _mark(worker, workers, out, pair):
    out[worker] += pair[0] * workers + pair[1]


@inner
def _ask_for(worker, workers, size):
    if worker == workers - 1:
        np.empty(size, np.float32)[0] = 0


def _marked(start, workers, out, pair):
    each_worker(start, workers, _mark, (out, pair))


def _asked(start, workers, size):
    each_worker(start, workers, _ask_for, (size,))


mark, ask = njit(_marked, cache=False), njit(_asked, cache=False)


def _starts():
    before = torch.get_num_threads()
    compat.launch_numba_threads()
    torch.set_num_threads(before)
    return [start for start in (ALONE, start_on_numba(), start_on_torch()) if start is not None]


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_every_worker_runs_once(workers):
    for start in _starts():
        out = np.zeros(5, np.int64)
        mark(start, workers, out, (10, 3))
        assert out.tolist() == [10 * workers + 3] * workers + [0] * (5 - workers)


def test_a_worker_without_memory_is_an_error_of_the_kernel():
    for start in _starts():
        ask(start, 2, 8)
        with pytest.raises(MemoryError):
            ask(start, 2, 2**58)


def _parts(out, workers):
    for worker in range(workers):
        for i in portion(worker, workers, out.size):
            out[i] += 1 + worker


def test_portions_are_all_of_a_range_and_as_even_as_may_be():
    parts = njit(_parts, cache=False)
    for size, workers in ((0, 2), (1, 3), (10, 3), (12, 4)):
        out = np.zeros(size, np.int64)
        parts(out, workers)
        counts = [int((out == 1 + worker).sum()) for worker in range(workers)]
        assert sum(counts) == size, "each number in one portion"
        assert max(counts) - min(counts) <= 1


def test_python_cannot_call_what_is_compiled_for_kernels():
    mark(ALONE, 1, np.zeros(5, np.int64), (1, 1))
    with pytest.raises(TypeError, match="_mark is called by kernels only"):
        _mark(0, 1, np.zeros(5, np.int64), (1, 1))
