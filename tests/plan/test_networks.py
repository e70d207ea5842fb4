"""Whole networks: torchvision's families end to end, random graphs of layers, and what is blocked, fused and copied."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import jitconv

MODELS: dict[str, dict[str, Any]] = {
    "alexnet": {},
    "vgg11": {},
    "resnet18": {},
    "squeezenet1_1": {},
    "mobilenet_v2": {},
    "shufflenet_v2_x0_5": {},
    "efficientnet_b0": {},
    "googlenet": {"aux_logits": False, "init_weights": False},
}


def built(name: str) -> nn.Module:
    """The model in eval mode, with the statistics of a batch in its batch norms."""
    model = getattr(jitconv.data.torchvision().models, name)(num_classes=10, **MODELS[name])
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
    with torch.no_grad():
        model.train()(torch.randn(4, 3, 64, 64))
    return model.eval()


def error(got: Tensor, wanted: Tensor) -> float:
    return float((got - wanted).abs().max() / wanted.abs().max())


@pytest.mark.parametrize("name", MODELS)
def test_families_give_torchs_numbers(name: str) -> None:
    model, x = built(name), torch.randn(1 if name in ("squeezenet1_1", "googlenet") else 2, 3, 64, 64)
    plan = jitconv.plan(model, x)
    with torch.no_grad():
        wanted = model.double()(x.double())
        torchs = error(model.float()(x).double(), wanted)
    assert error(plan(x).double(), wanted) <= max(1e-5, 4 * torchs)


def test_nothing_is_transposed_or_copied_between_convolutions() -> None:
    plan = jitconv.plan(built("resnet18"), torch.randn(1, 3, 64, 64))
    names = [step.name for step in plan.program.steps]
    assert names[-1] == "linear of one image"
    assert set(names[:-1]) == {"conv2d, blocked", "max_pool2d, blocked", "avg_pool2d, blocked"}


def test_what_winograd_leaves_to_jit_tiled_is_blocked() -> None:
    x, names = torch.randn(1, 3, 64, 64), {}
    for model in ("resnet18", "mobilenet_v2"):
        for variant in (None, "jit-winograd"):
            names[model, variant] = [step.name for step in jitconv.plan(built(model), x, variant=variant).program.steps]
    assert names["mobilenet_v2", "jit-winograd"] == names["mobilenet_v2", None]
    resnet = names["resnet18", "jit-winograd"]
    assert {"conv2d", "conv2d, blocked", "max_pool2d, blocked", "avg_pool2d, blocked"} <= set(resnet)
    assert not [name for name in resnet if "torch" in name]


@pytest.mark.parametrize("images", [1, 3])
def test_a_concatenation_of_convolutions_is_written_in_place(images: int) -> None:
    plan = jitconv.plan(built("squeezenet1_1"), torch.randn(images, 3, 64, 64))
    assert not [step for step in plan.program.steps if "copy" in step.name or "concat" in step.name]


class Random(nn.Module):
    """A chain of layers drawn by hypothesis; some add or concatenate an earlier image."""

    def __init__(self, layers: list[tuple[str, int]], channels: int) -> None:
        super().__init__()
        self.plan, self.layers = layers, nn.ModuleList()
        known = [channels]
        for kind, number in layers:
            channels = known[-1]
            if kind == "conv":
                self.layers.append(nn.Conv2d(channels, number, 3, padding=1))
                channels = number
            elif kind == "depthwise":
                self.layers.append(nn.Conv2d(channels, channels, 3, padding=1, groups=channels))
            elif kind == "norm":
                self.layers.append(nn.BatchNorm2d(channels))
            else:
                self.layers.append(nn.Identity())
                channels += known[number % len(known)] if kind == "concat" else 0
            known.append(channels)

    def forward(self, x: Tensor) -> Any:
        images = [x]
        for (kind, number), layer in zip(self.plan, self.layers, strict=True):
            x, other = images[-1], images[number % len(images)]
            if kind == "concat":
                x = torch.cat([x, other], 1)
            elif kind == "add":
                x = x + other if x.shape == other.shape else x + x
            elif kind == "pool":
                x = F.max_pool2d(x, 3, 1, 1) if number % 2 else F.avg_pool2d(x, 3, 1, 1)
            elif kind == "act":
                x = (F.relu, F.relu6, F.hardswish, F.silu, torch.sigmoid, F.hardsigmoid)[number % 6](x)
            else:
                x = layer(x)
            images.append(x)
        return images[-1], images[len(images) // 2].flatten(1)


def test_squeeze_and_excitation_is_kernels() -> None:
    plan = jitconv.plan(built("efficientnet_b0"), torch.randn(2, 3, 64, 64))
    names = {step.name for step in plan.program.steps}
    assert "scale, blocked" in names
    assert not [name for name in names if "torch" in name]


KINDS = ("conv", "depthwise", "norm", "concat", "add", "pool", "act")
LAYER = st.tuples(st.sampled_from(KINDS), st.sampled_from((3, 8, 16, 20, 32)))


@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(LAYER, min_size=1, max_size=7),
    st.sampled_from((3, 16)),
    st.sampled_from((1, 2)),
    st.sampled_from((None, "jit-winograd")),
)
def test_random_graphs_give_torchs_numbers(
    layers: list[tuple[str, int]], channels: int, batch: int, variant: str | None
) -> None:
    torch.manual_seed(0)
    model, x = Random(layers, channels).eval(), torch.randn(batch, channels, 6, 7)
    plan = jitconv.plan(model, x, variant=variant)
    for scale in (1.0, -1.0):
        with torch.no_grad():
            wanted = model.double()(x.double() * scale)
            model.float()
        for got, each in zip(plan(x * scale), wanted, strict=True):
            assert error(got.double(), each) < (1e-4 if variant else 1e-5)
