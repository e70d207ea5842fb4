"""Models of torchvision, converted, as a plan, and in other engines: forward on one image, and a step of training."""

import copy
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch
from torch import nn

import jitconv
from benchmarks import peers
from benchmarks.measure import measure
from benchmarks.rows import LANES, PLAN, WINOGRAD_PLAN, Row
from jitconv import data, variants
from jitconv.nn import convert

FORWARD = ("resnet18", "squeezenet1_1", "mobilenet_v2")
STEP = ("resnet18", "squeezenet1_1")
PLANNED = ("alexnet", "vgg11")  # a quick study has these not converted, on one core, and does not train them,
COMPILED = "resnet18"  # and has torch.compile, which takes long to begin, on more than one core of this alone
FULL = ("mobilenet_v3_small", "shufflenet_v2_x1_0", "efficientnet_b0", "googlenet")
PLANS = {PLAN: None, WINOGRAD_PLAN: "jit-winograd"}  # the variant that each is a plan of
IMAGE, STEP_IMAGE, STEP_BATCH = 224, 64, 4
BACKENDS = {PLAN: "jitconv", "torch.compile": "inductor"}
TOLERANCE = 1e-4, 1e-3  # of the norm: output, gradients


def rows(full: bool) -> list[Row]:
    def row(work: str, quantity: str, batch: int, variant: str, threads: int) -> Row:
        return Row(
            group="models", work=work, layer="model", quantity=quantity, variant=variant, threads=threads, batch=batch
        )

    whole = (*PLANS, "torch", *peers.MODELS)
    found = [
        row(f"{name} {IMAGE}×{IMAGE}, {batch}", "forward", batch, engine, threads)
        for name in (*FORWARD, *((*PLANNED, *FULL) if full else ()))
        for batch in ((1, 8) if full else (1,))
        for threads in LANES
        for engine in (variants.BEST["cpu"], *whole)
    ]
    if not full:
        found = [row for row in found if row.variant != "torch.compile" or row.threads == 1 or COMPILED in row.work]
        found += [row(f"{name} {IMAGE}×{IMAGE}, 1", "forward", 1, engine, 1) for name in PLANNED for engine in whole]
    return found + [
        row(f"{name} {STEP_IMAGE}×{STEP_IMAGE}, {STEP_BATCH}", "step", STEP_BATCH, variant, threads)
        for name in (*STEP, *((*PLANNED, *FULL) if full else ()))
        for threads in (LANES if full else (1,))
        for variant in (variants.BEST["cpu"], *(("vector",) if full else ()), PLAN, "torch", "torch.compile")
    ]


def test_models(benchmark: Any, row: Row) -> None:
    name, _, rest = row.work.partition(" ")
    reference = built(name)
    torch.manual_seed(0)
    images = torch.randn(row.batch, 3, *[int(rest.partition("×")[0])] * 2)
    if row.quantity == "step":
        measure_step(benchmark, row, reference, images)
        return
    with torch.no_grad():
        expected = reference(images)
        forward = forward_of(row, reference, images)

        def check() -> float:
            return error(torch.as_tensor(forward()), expected) / TOLERANCE[0]

        measure(benchmark, row, forward, check)


def forward_of(row: Row, reference: nn.Module, images: torch.Tensor) -> Callable[[], Any]:
    if row.variant in peers.MODELS:
        return peers.MODELS[row.variant](reference, images, row.threads)
    if row.variant in PLANS:
        return partial(jitconv.plan(reference, images, variant=PLANS[row.variant]), images)
    model = reference if row.variant == "torch" else convert(reference, row.variant)
    return partial(model, images)


def measure_step(benchmark: Any, row: Row, reference: nn.Module, images: torch.Tensor) -> None:
    """Time forward, loss, backward and a step of SGD; the weights stay, so that the last check holds."""
    reference = copy.deepcopy(reference).train()
    for module in reference.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.1  # None makes torch.compile break the graph
    model: Any = reference
    if row.variant in BACKENDS:
        model = torch.compile(copy.deepcopy(reference), backend=BACKENDS[row.variant], dynamic=False)
    elif row.variant != "torch":
        model = convert(copy.deepcopy(reference), row.variant)
    labels = torch.arange(len(images))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0, momentum=0.9)

    def check() -> float:
        (found, grads), (expected, torchs) = (results(each, images) for each in (model, reference))
        return max(error(found, expected) / TOLERANCE[0], error(grads, torchs) / TOLERANCE[1])

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
        model.train()(torch.randn(8, 3, STEP_IMAGE, STEP_IMAGE))
    return model.eval()


def results(model: nn.Module, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The output, and all gradients in one vector."""
    with torch.enable_grad():
        out = model(images)
        grads = torch.autograd.grad(out.square().sum(), list(model.parameters()))
    return out.detach(), torch.cat([grad.flatten() for grad in grads])


def error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm())
