"""How a row is timed on a GPU: three times, because each answers another question.

kernel_seconds      the GPU's own work, between two events, with nothing left in its cache
seconds (stats)     from the call until the GPU has finished: what a program sees that waits for every result
end_to_end_seconds  the same with the inputs copied from the host and the results back

A training step is timed eagerly and captured as one CUDA graph, torch's own step too; an epoch once, as a whole.
"""

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.measure import ROUNDS, measure, worst
from benchmarks.rows import Row
from benchmarks.test_network import TOLERANCE
from jitconv import SimpleConvNet, data, functional
from jitconv.graph import CapturedStep
from jitconv.verify import Expected, differentiable, results

DEVICE = "cuda"  # tests run this file elsewhere
FLUSH = 1 << 30  # bytes: more than any cache, and long enough to write that the launches after it are queued behind


def measure_layer(benchmark: Any, row: Row) -> None:
    """Time a row's case on the GPU, forward or backward, if it is right; float32 is float32 on both sides."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    assert row.case is not None
    expected = Expected(row.case, device=DEVICE)
    layer = partial(getattr(functional, row.case.layer), variant=row.variant)
    check = partial(worst, expected, layer, row.variant) if row.variant != "torch" else None
    call, whole = calls(row, expected, layer)
    with torch.set_grad_enabled(row.quantity == "backward"):
        measure(benchmark, row, partial(synchronised, call), check)
        benchmark.extra_info["kernel_seconds"] = kernel_seconds(call)
        benchmark.extra_info["end_to_end_seconds"] = [seconds(whole) for _ in range(ROUNDS)]


def measure_copy(benchmark: Any, row: Row) -> None:
    """Time a copy within the GPU's memory: what is bound by memory cannot be faster."""
    source = torch.ones(int(row.bytes) // 2, dtype=torch.uint8, device=DEVICE)
    call = partial(torch.empty_like(source).copy_, source)
    measure(benchmark, row, partial(synchronised, call))
    benchmark.extra_info["kernel_seconds"] = kernel_seconds(call)


def measure_training(benchmark: Any, row: Row) -> None:
    """Time a step of SGD with momentum on `row.batch` digits, or an epoch of `row.size` digits in such batches."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    digits, labels = data.load()[0].tensors
    if row.quantity.startswith("epoch"):
        measure(benchmark, row, partial(synchronised, epoch(row, digits.to(DEVICE), labels.to(DEVICE))))
        return
    host = digits[: row.batch], labels[: row.batch]
    batch = [tensor.to(DEVICE) for tensor in host]
    step = training_step(row, lambda *batch: batch, *batch)
    call = partial(step, *batch)
    measure(benchmark, row, partial(synchronised, call))
    benchmark.extra_info["kernel_seconds"] = kernel_seconds(call)
    whole = lambda: step(*[tensor.to(DEVICE) for tensor in host]).item()  # noqa: E731
    benchmark.extra_info["end_to_end_seconds"] = [seconds(whole) for _ in range(ROUNDS)]


def epoch(row: Row, digits: Tensor, labels: Tensor) -> Callable[[], None]:
    """Return how to train on `row.size` digits, these again and again, in a random order, as `jitconv train` does."""
    first = torch.arange(row.batch, device=digits.device)
    step = training_step(row, lambda chosen: (digits[chosen], labels[chosen]), first)

    def run() -> None:
        order = torch.randperm(row.size, device=digits.device) % len(labels)
        for chosen in order.split(row.batch):
            step(chosen)

    return run


def training_step(row: Row, gather: Callable[..., Any], *inputs: Tensor) -> Callable[..., Tensor]:
    """Return a step of the row's variant on the images and labels that `gather` makes of its inputs.

    It is captured if the row's quantity says so; and it fails if the first loss is wrong.
    """
    torch.manual_seed(0)
    images, labels = gather(*inputs)
    model = SimpleConvNet(row.variant).to(images.device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)

    def step(*inputs: Tensor) -> Tensor:
        images, labels = gather(*inputs)
        optimizer.zero_grad()
        loss = functional.cross_entropy(model(images), labels, variant=row.variant)
        loss.backward()
        optimizer.step()
        return loss.detach()

    with torch.no_grad():
        reference = SimpleConvNet("torch").to(images.device)
        reference.load_state_dict(model.state_dict())
        expected = float(torch.nn.functional.cross_entropy(reference(images), labels))
    taken = CapturedStep(step, model, optimizer, *inputs) if "captured" in row.quantity else step
    first = float(taken(*inputs))
    if not abs(first - expected) <= TOLERANCE * abs(expected):
        pytest.fail(f"wrong: the first loss is {first}, and torch's is {expected}")
    return taken


def calls(row: Row, expected: Expected, layer: Callable[..., Any]) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """Return what is timed on the GPU, and the same from host memory to host memory."""
    assert row.case is not None
    case, host = row.case, {name: value.cpu() for name, value in expected.inputs.items()}
    if row.quantity == "forward":
        call = partial(layer, **expected.inputs, **case.arguments)
        return call, lambda: layer(**{name: value.to(DEVICE) for name, value in host.items()}, **case.arguments).cpu()

    leaves = differentiable(case, expected.inputs)
    out = layer(**{**expected.inputs, **leaves}, **case.arguments)
    grad = expected.grad.to(out.dtype)
    call = partial(torch.autograd.grad, out, list(leaves.values()), grad, retain_graph=True)

    def whole() -> list[torch.Tensor]:
        moved = {name: value.to(DEVICE) for name, value in host.items()}
        return [value.cpu() for value in results(layer, case, moved, grad).values()]

    return call, whole


def synchronised(call: Callable[[], Any]) -> None:
    call()
    torch.cuda.synchronize()


def seconds(call: Callable[[], Any]) -> float:
    torch.cuda.synchronize()
    start = time.perf_counter()
    synchronised(call)
    return time.perf_counter() - start


def kernel_seconds(call: Callable[[], Any]) -> list[float]:
    """Return what the GPU needs for `call`, in several rounds, each with a cold cache."""
    flush = torch.empty(FLUSH, dtype=torch.uint8, device=DEVICE)
    found = []
    for _ in range(ROUNDS):
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        flush.zero_()
        start.record()
        call()
        stop.record()
        torch.cuda.synchronize()
        found.append(start.elapsed_time(stop) / 1000)
    return found
