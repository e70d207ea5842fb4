"""The whole of SimpleConvNet: its forward, a step of training, and the headline, one image forward."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

import jitconv
from benchmarks import peers
from benchmarks.measure import measure
from benchmarks.rows import LANES, PLAN, Row, over_variants, powers, twice
from jitconv import SimpleConvNet, data, functional, variants

FORWARD_FLOPS = 2 * (20 * 24 * 24 * 25 + 500 * 2880 + 10 * 500)  # of one image
TOLERANCE = 1e-4  # of the largest logit: what rounding may do through three layers


IMAGES = (1, 64, 1000)


def rows(full: bool) -> list[Row]:
    found: list[Row] = []
    for threads in LANES:
        for batch in IMAGES:
            row = forward_row("network", batch, threads)
            found += over_variants(row, skip=() if full or batch < 1000 else ("jit", "jit-parallel", "jit-static"))
            found += [replace(row, variant=name) for name in (PLAN, *peers.FORWARD)]
        for batch in set(powers(4, 1, 4096 if full else 1024)) - set(IMAGES):
            row = forward_row("batches", batch, threads, axis="images at once", size=batch)
            found += [replace(row, variant=name) for name in (variants.BEST["cpu"], PLAN, "torch")]
        row = Row(
            group="network", work="training step, 64", layer="network", quantity="step", variant="",
            threads=threads, batch=64, flops=64 * (3 * FORWARD_FLOPS - 2 * 20 * 24 * 24 * 25),
        )  # fmt: skip
        found += over_variants(row)
        found += [replace(row, variant=name) for name in (PLAN, *peers.STEP)]
    return twice(found)


def forward_row(group: str, batch: int, threads: int, **axis: Any) -> Row:
    return Row(
        group=group, work=f"forward, {batch}", layer="network", quantity="forward", variant="", threads=threads,
        batch=batch, flops=FORWARD_FLOPS * batch, **axis,
    )  # fmt: skip


def test_network(benchmark: Any, row: Row) -> None:
    images, labels = (tensor[: row.batch] for tensor in data.load()[0].tensors)
    torch.manual_seed(0)
    reference = SimpleConvNet("torch")
    if row.quantity == "step":
        measure_step(benchmark, row, reference, images, labels)
        return
    with torch.no_grad():
        expected = reference(images)
        forward = forward_of(row, reference, images)

        def check() -> float:
            return float((torch.as_tensor(forward()) - expected).abs().max() / expected.abs().max()) / TOLERANCE

        measure(benchmark, row, forward, None if row.interpreted else check)


def forward_of(row: Row, reference: SimpleConvNet, images: torch.Tensor) -> Callable[[], Any]:
    """Return what computes the network of the reference's weights as the row's variant or engine does."""
    if row.variant in peers.FORWARD:
        return peers.FORWARD[row.variant](reference, images, row.threads)
    model = SimpleConvNet(variants.BEST["cpu"] if row.variant == PLAN else row.variant)
    model.load_state_dict(reference.state_dict())
    if row.variant == PLAN:
        planned = jitconv.plan(model, images)
        return lambda: planned(images)
    return lambda: model(images)


def measure_step(benchmark: Any, row: Row, model: SimpleConvNet, images: torch.Tensor, labels: torch.Tensor) -> None:
    """Time forward, loss, backward and the step of torch.optim.SGD with momentum, which is everybody's here."""
    if row.variant == PLAN:
        step = peers.torch_compile_step(model, images, labels, "jitconv")
    elif row.variant in peers.STEP:
        step = peers.STEP[row.variant](model, images, labels)
    else:
        for layer in model.children():
            layer.variant = row.variant  # type: ignore[assignment]
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)

        def step() -> Any:
            optimizer.zero_grad()
            loss = functional.cross_entropy(model(images), labels, variant=row.variant)
            loss.backward()
            optimizer.step()
            return loss

    first = float(step())
    torch.manual_seed(0)
    expected = float(torch.nn.functional.cross_entropy(SimpleConvNet("torch")(images), labels))
    if not abs(first - expected) <= TOLERANCE * abs(expected):
        pytest.fail(f"wrong: the first loss is {first}, and torch's is {expected}")
    measure(benchmark, row, step)
