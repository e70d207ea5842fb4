"""jitconv.nn.convert on the architectures of torchvision and on layers that it must leave: torch's numbers, and why."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import jitconv
from jitconv.nn import convert

MODELS: dict[str, dict[str, Any]] = {
    "alexnet": {},
    "vgg11": {},
    "resnet18": {},
    "squeezenet1_1": {},
    "mobilenet_v2": {},
    "mobilenet_v3_small": {},
    "shufflenet_v2_x0_5": {},
    "efficientnet_b0": {},
    "googlenet": {"aux_logits": False, "init_weights": True},
}

FUNCTIONS = "functions in a forward (F.relu, say) are not seen here: jitconv.plan and torch.compile see them"


def built(name: str, size: int) -> tuple[nn.Module, torch.Tensor]:
    """The model in eval mode, with the statistics of a batch in its BatchNorms, and two images for it."""
    models = jitconv.data.torchvision().models
    model = getattr(models, name)(num_classes=10, **MODELS[name])
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # what one batch shows is all there is
    with torch.no_grad():
        model.train()(torch.randn(8, 3, size, size))
    return model.eval(), torch.randn(2, 3, size, size, requires_grad=True)


def gradients(model: nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
    out = model(x)
    return out.detach(), torch.autograd.grad(out.square().sum(), [x, *model.parameters()])


@pytest.mark.parametrize("name", MODELS)
def test_architectures_give_torchs_outputs_and_gradients(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    model, x = built(name, 32 if name == "vgg11" else 64)
    converted = convert(model, "jit-tiled", report=True)
    expected, torchs = gradients(model, x)
    out, grads = gradients(converted, x)
    assert float((out - expected).norm() / expected.norm()) < 1e-4
    wide = x.detach().double().requires_grad_()
    (_, exact), (_, ours_exact) = (gradients(copy.deepcopy(each).double(), wide) for each in (model, converted))
    for ours, ours64, theirs, grad in zip(grads, ours_exact, torchs, exact, strict=True):
        assert float((ours64 - grad).norm()) <= 1e-9 * float(grad.norm())
        # In float32 rounding moves some numbers across the corner of a ReLU, in torch as here, but other ones.
        assert float((ours - theirs).norm()) <= 5e-3 * float(grad.norm()) + 2 * float((theirs - grad).norm())
    assert "computed by jit-tiled" in capsys.readouterr().out


def test_the_report_counts_what_was_swapped_and_names_what_was_left(capsys: pytest.CaptureFixture[str]) -> None:
    class Scaled(nn.Linear):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(input)

    model = nn.Sequential(
        nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU6(), nn.Conv2d(2, 2, 3)),
        *(nn.ReLU6() for _ in range(3)),
        nn.LazyLinear(3),
        Scaled(3, 4),
    )
    convert(model, report=True)
    assert capsys.readouterr().out.splitlines() == [
        "computed by the best variant for the device: 2 layers",
        "     2 Conv2d",
        "left as they are: 6 layers",
        "     1 LazyLinear: its shape is not known before its first call (4)",
        "     4 ReLU6: jitconv has no such layer (0.1, 1, 2, …)",
        "     1 Scaled: a subclass of Linear: its forward is its own (5)",
        FUNCTIONS,
    ]
    convert(nn.Sequential(nn.Conv2d(1, 2, 3), nn.Conv2d(2, 2, 3, padding_mode="circular")), report=True)
    assert capsys.readouterr().out.splitlines()[:3] == [
        "computed by the best variant for the device: 2 layers",
        "     1 Conv2d",
        "     1 Conv2d, of images that torch pads before, in a copy (circular)",
    ]
    convert(nn.ReLU(), "vector", report=True)
    assert capsys.readouterr().out.splitlines() == [
        "computed by vector: 1 layers",
        "     1 ReLU",
        "left as they are: 0 layers",
        FUNCTIONS,
    ]


def replaced() -> nn.Module:
    layer = nn.Linear(4, 4)
    layer.forward = lambda input: 3 * input  # type: ignore[method-assign]
    return layer


LEFT: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "a parametrized weight": (lambda: nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)), "its forward is its own"),
    "a forward that was replaced": (replaced, "its forward was replaced"),
    "complex numbers": (lambda: nn.Linear(4, 4, dtype=torch.complex64), r"its weight is torch\.complex64"),
}


@pytest.mark.parametrize("what", LEFT)
def test_what_is_left_is_torchs(what: str, capsys: pytest.CaptureFixture[str]) -> None:
    make, reason = LEFT[what]
    layer = make()
    kind = type(layer)
    dtype = next(layer.parameters()).dtype
    x = torch.randn(2, 4, dtype=dtype)
    converted = convert(layer, report=True, inplace=True)
    assert type(converted) is kind
    assert reason.replace("\\", "") in capsys.readouterr().out
    assert converted(x).shape == (2, 4)


KEPT: dict[str, Callable[[], nn.Module]] = {
    "circular padding": lambda: nn.Conv2d(4, 2, 3, padding=1, padding_mode="circular"),
    "replicated padding, same": lambda: nn.Conv2d(4, 2, (3, 2), padding="same", padding_mode="replicate"),
    "weight norm by a hook": lambda: nn.utils.weight_norm(nn.Conv2d(4, 2, 3)),
    "spectral norm by a hook": lambda: nn.utils.spectral_norm(nn.Conv2d(4, 2, 3)).eval(),
    "indices of a pooling": lambda: nn.Sequential(Unpooled()),
    "a lazy layer that was called": lambda: called(nn.LazyConv2d(2, 3)),
    "one layer in two places": lambda: (lambda relu: nn.Sequential(relu, nn.Conv2d(4, 4, 1), relu))(nn.ReLU()),
    "attention": lambda: Attention(),
}


class Unpooled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.pool, self.unpool = nn.MaxPool2d(2, return_indices=True), nn.MaxUnpool2d(2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.unpool(*self.pool(x))


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x.flatten(2)[..., :8])


def called(layer: nn.Module) -> nn.Module:
    layer(torch.randn(1, 4, 6, 6))
    return layer


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("what", KEPT)
def test_what_surrounds_a_layer_keeps_working(what: str) -> None:
    model, x = KEPT[what](), torch.randn(2, 4, 6, 6)
    expected = model(x)
    converted = convert(model, "jit-tiled", inplace=True)
    assert any(type(m) in jitconv.nn.REPLACEMENTS.values() for m in converted.modules())
    torch.testing.assert_close(converted(x), expected)
    with torch.no_grad():
        torch.testing.assert_close(converted.eval()(x), model.eval()(x))


def test_a_copy_of_a_converted_model_is_converted() -> None:
    model = convert(nn.Sequential(nn.Linear(3, 2), nn.ReLU()), "jit")
    assert [type(m) for m in copy.deepcopy(model)] == [jitconv.nn.Linear, jitconv.nn.ReLU]


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8])
@pytest.mark.parametrize("layer", [nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()], ids=str)
def test_integers_are_left_to_torch(layer: nn.Module, dtype: torch.dtype) -> None:
    x = torch.arange(32).reshape(1, 2, 4, 4).to(dtype)
    assert torch.equal(convert(layer)(x), layer(x))


def test_features_of_a_converted_model_can_be_extracted() -> None:
    jitconv.data.torchvision()
    from torchvision.models.feature_extraction import create_feature_extractor

    model, x = built("squeezenet1_1", 64)
    expected, found = (create_feature_extractor(each, {"features.6": "six"})(x) for each in (model, convert(model)))
    torch.testing.assert_close(found["six"], expected["six"], rtol=1e-4, atol=1e-4)
