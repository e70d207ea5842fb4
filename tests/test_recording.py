"""Recorded calls: they compute what the call does, from wherever their arrays are then, and fail as it does."""

import numpy as np
import pytest
import torch

from jitconv.variants import get, recording
from jitconv.variants.compiling import inner
from jitconv.variants.recording import ALL, RUN, record, table
from jitconv.variants.tiled.kernel import Tiled
from jitconv.variants.tiled.windows import ADD
from jitconv.variants.workers import each_worker


@inner
def _ask_for(worker, workers, size):
    np.empty(size[0], np.float32)[0] = 0


def _ask(start, workers, size):
    each_worker(start, workers, _ask_for, (size,))


ASK = Tiled(_ask, None, recordable=True)


@pytest.mark.parametrize("threads", [1, 2])
def test_a_recorded_call_runs_where_its_arrays_then_are(threads):
    torch.set_num_threads(threads)
    x, y, other = (np.random.default_rng(i).standard_normal(10_001, np.float32) for i in range(3))
    out, elsewhere = np.zeros_like(x), np.zeros_like(x)
    first = record(ADD, (x, y, 0.0, 1.0, out))
    second = record(ADD, (out, other, -9.0, 9.0, elsewhere))
    assert not out.any()  # nothing has run
    RUN(table([(first, ALL), (second, 1)]))
    np.testing.assert_array_equal(out, np.clip(x + y, 0, 1))
    np.testing.assert_array_equal(elsewhere, out + other)
    first.arguments[first.arguments == y.ctypes.data] = other.ctypes.data
    RUN(table([(first, ALL)]))
    np.testing.assert_array_equal(out, np.clip(x + other, 0, 1))


def test_a_recorded_call_without_memory_is_an_error_each_time():
    size = np.array([8])
    recording = record(ASK, (size,))
    lines = table([(recording, ALL)])
    RUN(lines)
    size[0] = 2**58
    for _ in range(2):
        with pytest.raises(MemoryError):
            RUN(lines)
    size[0] = 8
    RUN(lines)


def test_what_plain_loops_would_compute_is_not_recorded():
    kernel = get("jit-tiled").ops["conv2d_max_pool2d"]
    x, weight, bias, out = (np.ones(s, np.float32) for s in ((1, 1, 8, 8), (4, 1, 3, 3), (4,), (1, 4, 3, 3)))
    once, windows = ((1, 1), (0, 0), (1, 1)), ((2, 2), (2, 2), (0, 0), (1, 1))
    args = (x, weight, bias, *once, (6, 6), *windows, out, np.empty((0,) * 4, np.int64))
    chosen = kernel.bind(tuple((a.shape, a.dtype) for a in (x, weight, bias, out, args[-1])), args[3:-2])
    assert chosen.recordable
    ((own, own_args),) = chosen.calls(*args)
    assert record(own, own_args) is not None
    weight[0, 0, 0, 0] = np.inf
    assert record(own, own_args) is None


def test_arguments_that_are_too_long_are_refused(monkeypatch):
    monkeypatch.setattr(recording, "MAX_BYTES", 16)
    with pytest.raises(RuntimeError, match="at most 16 bytes"):
        record(ASK, (np.array([8]),))
