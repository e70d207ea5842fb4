"""How a row is measured: compile, compare with torch, time and watch the machine, compare again."""

import os
import resource
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import pytest
import torch

from benchmarks.rows import ALL_CORES, Row
from jitconv import functional
from jitconv.cases import Case
from jitconv.verify import Expected, differentiable, results, tensors

try:
    from threadpoolctl import threadpool_limits
except ImportError:  # a GPU machine may have no more than torch and numba; NumPy computes nothing that is timed there
    threadpool_limits = nullcontext

try:
    import psutil
except ImportError:
    psutil = None

COMPILES = "BENCHMARK_COMPILES" in os.environ  # a process that nothing is timed in: it leaves what it compiled on disk
ROUNDS = 5  # of a pass
SLOWEST = 2.0  # seconds: what takes longer is timed once
SECONDS = 0.05  # what the rounds of a fast row take together: it is called several times a round
FAST = 0.1  # seconds: in what takes longer, what a first call does besides is little


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Give torch, its peers' BLAS libraries and jitconv this many cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        with threadpool_limits(count):
            yield
    finally:
        torch.set_num_threads(before)


def measure(benchmark: Any, row: Row, call: Callable[[], Any], check: Callable[[], float] | None = None) -> None:
    """Time `call` if `check`, before and after, finds it right; it returns the share of the allowed error used.

    A row that is wrong fails and has no time.
    """
    benchmark.group = row.group
    benchmark.extra_info.update(row.info())
    with threads(row.threads):
        if COMPILES:
            call()
            return
        error = _checked(check)
        rounds, iterations = (1, 1) if row.variant == "interpreted" else _rounds(call, check is not None)
        with watched(benchmark.extra_info):
            benchmark.pedantic(call, rounds=rounds, iterations=iterations)
        error = max(error, _checked(check))
    benchmark.extra_info["bound_used"] = error


def _rounds(call: Callable[[], Any], compiled: bool) -> tuple[int, int]:
    """Return how many rounds are timed, and how many calls in each; the check before may have compiled all."""
    once = _seconds(call)
    if once < FAST or not compiled:
        once = _seconds(call)
    if once > SLOWEST:
        return 1, 1
    rounds = ROUNDS if once * ROUNDS < 1 else 3
    return rounds, max(1, int(SECONDS / rounds / max(once, 1e-7)))


def _seconds(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


@contextmanager
def watched(info: dict[str, Any]) -> Iterator[None]:
    """Note what the machine did meanwhile, in `info`: how many cores this process had, and how many all others.

    used_cores: near the row's threads where it computes all the time; more says that it ran on more cores than it
    was given. other_cores: above the cores left over, others took what the row should have had. preempted: how
    often the system took a core away from this process.
    """
    before = _clocks()
    yield
    wall, own, everyone, preempted = (after - first for after, first in zip(_clocks(), before, strict=True))
    info["used_cores"] = round(own / wall, 3)
    info["other_cores"] = round(max(0.0, everyone - own) / wall, 3)
    info["preempted"] = int(preempted)
    info["cores"] = ALL_CORES


def _clocks() -> tuple[float, float, float, float]:
    """Seconds of the wall, of this process's cores, of all cores in use; and how often this process lost one."""
    busy = 0.0
    if psutil is not None:
        times = psutil.cpu_times()
        busy = sum(getattr(times, name, 0.0) for name in ("user", "nice", "system", "irq", "softirq", "steal"))
    return time.perf_counter(), time.process_time(), busy, resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw


def _checked(check: Callable[[], float] | None) -> float:
    used = check() if check is not None else 0.0
    if not used <= 1:
        pytest.fail(f"wrong: {used:.3g} times the allowed error, so there is no time to report")
    return used


def measure_layer(benchmark: Any, row: Row) -> None:
    """Time a row's case: forward, call (forward where gradients are wanted), backward or weight gradient.

    torch is called through its own functions, the others through jitconv's.
    """
    assert row.case is not None
    expected = None if COMPILES else _expected(row.case)
    inputs = expected.inputs if expected else tensors(row.case)
    layer = partial(getattr(functional, row.case.layer), variant=row.variant)
    check: Callable[[], float] | None = None
    if row.variant == "torch":  # the oracle itself
        layer = partial(getattr(torch.nn.functional, row.case.layer, None) or getattr(torch, row.case.layer))
    elif expected is not None:
        check = partial(_forward_only if row.quantity == "forward" else worst, expected, layer, row.variant)
    call = partial(layer, **inputs, **row.case.arguments)
    if row.quantity == "forward":
        with torch.no_grad():
            measure(benchmark, row, call, check)
        return
    leaves = differentiable(row.case, inputs)
    if row.quantity == "call":
        measure(benchmark, row, partial(call, **leaves), check)
        return
    if row.quantity == "weight gradient":
        leaves = {"weight": leaves["weight"]}
    out = call(**leaves)
    grad = expected.grad.to(out.dtype) if expected else torch.ones_like(out)
    measure(benchmark, row, partial(torch.autograd.grad, out, list(leaves.values()), grad, retain_graph=True), check)


_last: dict[str, Expected] = {}  # rows of one case follow each other, and an oracle is large


def _expected(case: Case) -> Expected:
    if str(case) not in _last:
        _last.clear()
        _last[str(case)] = Expected(case)
    return _last[str(case)]


def worst(expected: Expected, layer: Callable[..., Any], variant: str) -> float:
    """Return the largest share of its bound that a result of the layer, or a gradient, uses; bounds are a variant's."""
    with torch.enable_grad():
        found = results(layer, expected.case, expected.inputs, expected.grad)
    return _most_used(expected, variant, found)


def _forward_only(expected: Expected, layer: Callable[..., Any], variant: str) -> float:
    return _most_used(expected, variant, {"forward": layer(**expected.inputs, **expected.case.arguments)})


def _most_used(expected: Expected, variant: str, found: dict[str, torch.Tensor]) -> float:
    return max(expected.bound_used(variant, quantity, value) for quantity, value in found.items())
