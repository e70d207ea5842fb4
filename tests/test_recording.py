"""Recorded calls: they compute what the call does, from wherever their arrays are then, and fail as it does."""

import itertools

import numpy as np
import pytest
import torch

from jitconv.variants import get, recording
from jitconv.variants.compiling import inner
from jitconv.variants.recording import RUN, record, table
from jitconv.variants.threads import pool
from jitconv.variants.tiled.kernel import Tiled
from jitconv.variants.tiled.windows import ADD
from jitconv.variants.workers import each_worker, portion


@inner
def _ask_for(worker, workers, size):
    np.empty(size[0], np.float32)[0] = 0


def _ask(start, workers, size):
    each_worker(start, workers, _ask_for, (size,))


@inner
def _mean_and_one(worker, workers, x, out):
    for i in portion(worker, workers, out.size):
        out[i] = x.mean() + 1


def _next(start, workers, x, out):
    each_worker(start, workers, _mean_and_one, (x, out))


@inner
def _mark(worker, workers, out):
    out[worker] += workers


def _mark_all(start, workers, out):
    each_worker(start, workers, _mark, (out,))


ASK, NEXT = Tiled(_ask, None, recordable=True), Tiled(_next, None, recordable=True, parts=4)


@pytest.mark.parametrize("threads", [1, 2])
def test_a_recorded_call_runs_where_its_arrays_then_are(threads):
    torch.set_num_threads(threads)
    x, y, other = (np.random.default_rng(i).standard_normal(10_001, np.float32) for i in range(3))
    out, elsewhere = np.zeros_like(x), np.zeros_like(x)
    first = record(ADD, (x, y, 0.0, 1.0, out))
    second = record(ADD, (out, other, -9.0, 9.0, elsewhere))
    assert not out.any()  # nothing has run
    RUN(table([(first, False), (second, True)]))
    np.testing.assert_array_equal(out, np.clip(x + y, 0, 1))
    np.testing.assert_array_equal(elsewhere, out + other)
    first.arguments[first.arguments == y.ctypes.data] = other.ctypes.data
    RUN(table([(first, False)]))
    np.testing.assert_array_equal(out, np.clip(x + other, 0, 1))


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_each_recorded_call_begins_when_the_one_before_has_ended(threads):
    torch.set_num_threads(threads)
    arrays = [np.zeros(1000) for _ in range(60)]
    recordings = [record(NEXT, pair) for pair in itertools.pairwise(arrays)]
    lines = table([(each, i % 7 == 3) for i, each in enumerate(recordings)])
    for _ in range(20):
        for array in arrays[1:]:
            array[:] = np.nan
        RUN(lines)
        np.testing.assert_array_equal(arrays[-1], len(recordings))


@pytest.mark.parametrize("parts", [1, 3])
def test_each_part_is_done_by_one_worker(parts):
    torch.set_num_threads(2)
    out = np.zeros(8, np.int64)
    marked = record(Tiled(_mark_all, None, recordable=True, parts=parts), (out,))
    RUN(table([(marked, False), (marked, True)]))
    assert out.tolist() == [2 * parts + 1] + [2 * parts] * (2 * parts - 1) + [0] * (8 - 2 * parts)


@pytest.mark.parametrize("threads", [1, 2])
def test_a_recorded_call_runs_without_teams(threads, monkeypatch):
    torch.set_num_threads(threads)
    monkeypatch.setattr(recording, "pool", lambda: pool()._replace(team=(0, 0)))
    x, out = np.ones(10_001, np.float32), np.zeros(10_001, np.float32)
    RUN(table([(record(ADD, (x, x, -9.0, 9.0, out)), False)]))
    assert (out == 2).all()


def test_a_recorded_call_without_memory_is_an_error_each_time():
    size = np.array([8])
    recording = record(ASK, (size,))
    lines = table([(recording, False)])
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
