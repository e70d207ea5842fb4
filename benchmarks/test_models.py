"""Models of torchvision, converted, beside themselves: forward, and a step of training, on small images."""

from functools import cache, partial
from typing import Any

import torch
from torch import nn

from benchmarks.measure import measure
from benchmarks.rows import LANES, Row
from jitconv import data
from jitconv.nn import convert

QUICK = ("alexnet", "resnet18", "squeezenet1_1")
FULL = ("vgg11", "mobilenet_v2", "mobilenet_v3_small", "shufflenet_v2_x1_0", "efficientnet_b0", "googlenet")
VARIANTS = ("jit-tiled", "vector", "torch")  # those that make a step in less than seconds
BATCH, SIZE = 4, 64
TOLERANCE = 1e-4, 1e-3  # of the norm: output, gradients


def rows(full: bool) -> list[Row]:
    return [
        Row(
            group="models", work=f"{name} {SIZE}×{SIZE}", layer="model", quantity=quantity, variant=variant,
            threads=threads, batch=BATCH,
        )
        for name in (*QUICK, *(FULL if full else ()))
        for quantity in ("forward", "step")
        for threads in (LANES if full else (1,))
        for variant in VARIANTS
    ]  # fmt: skip


def test_models(benchmark: Any, row: Row, again: int) -> None:
    reference = built(row.work.partition(" ")[0])
    model = reference if row.variant == "torch" else convert(reference, row.variant)
    torch.manual_seed(0)
    images, labels = torch.randn(BATCH, 3, SIZE, SIZE), torch.arange(BATCH)

    def check() -> float:
        (found, grads), (expected, torchs) = (results(each, images) for each in (model, reference))
        return max(error(found, expected) / TOLERANCE[0], error(grads, torchs) / TOLERANCE[1])

    if row.quantity == "forward":
        with torch.no_grad():
            measure(benchmark, row, partial(model, images), check)
        return
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0, momentum=0.9)  # the weights stay: the last check holds

    def step() -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()

    measure(benchmark, row, step, check)


@cache
def built(name: str) -> nn.Module:
    """The model without dropout, and its BatchNorms with the statistics of a batch, so that signals reach the end."""
    torch.manual_seed(0)
    model = getattr(data.torchvision().models, name)(
        num_classes=10, **({"aux_logits": False, "init_weights": True} if name == "googlenet" else {})
    )
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    with torch.no_grad():
        model.train()(torch.randn(8, 3, SIZE, SIZE))
    return model.eval()


def results(model: nn.Module, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The output, and all gradients in one vector."""
    with torch.enable_grad():
        out = model(images)
        grads = torch.autograd.grad(out.square().sum(), list(model.parameters()))
    return out.detach(), torch.cat([grad.flatten() for grad in grads])


def error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm())
