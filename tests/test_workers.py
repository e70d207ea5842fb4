"""Sharing out a kernel: every worker runs once, and what fails in one is raised by the kernel."""

import numpy as np
import pytest

from jitconv.variants import threads
from jitconv.variants.compiling import inner, njit
from jitconv.variants.tiled.workers import ALONE, each_worker, team


@inner
def _mark(worker, workers, out, pair):
    out[worker] += pair[0] * workers + pair[1]


@inner
def _ask_for(worker, workers, size):
    if worker == workers - 1:
        np.empty(size, np.float32)[0] = 0


def _marked(team, workers, out, pair):
    each_worker(team, workers, _mark, (out, pair))


def _asked(team, workers, size):
    each_worker(team, workers, _ask_for, (size,))


mark, ask = njit(_marked, cache=False), njit(_asked, cache=False)


def _teams():
    threads.layer()  # starts the threads
    return ALONE, team()


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_every_worker_runs_once(workers):
    for who in _teams():
        out = np.zeros(5, np.int64)
        mark(who, workers, out, (10, 3))
        assert out.tolist() == [10 * workers + 3] * workers + [0] * (5 - workers)


def test_a_worker_without_memory_is_an_error_of_the_kernel():
    for who in _teams():
        ask(who, 2, 8)
        with pytest.raises(MemoryError):
            ask(who, 2, 2**58)


def test_python_cannot_call_what_is_compiled_for_kernels():
    mark(ALONE, 1, np.zeros(5, np.int64), (1, 1))
    with pytest.raises(TypeError, match="_mark is called by kernels only"):
        _mark(0, 1, np.zeros(5, np.int64), (1, 1))
