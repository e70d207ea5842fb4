"""torch.compile(backend="jitconv"): eager's numbers and gradients, in all that torch.compile does with graphs."""

import copy
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import jitconv


@pytest.fixture(autouse=True)
def _forgotten() -> Iterator[None]:
    yield
    torch._dynamo.reset()


def compiled(model: Any, **options: Any) -> Any:
    return torch.compile(model, backend="jitconv", **options)


class Functional(nn.Module):
    """SimpleConvNet in small, spelled as most people do."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc1, self.fc2 = nn.Conv2d(1, 4, 3), nn.Linear(100, 20), nn.Linear(20, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.conv(x)), 2)
        return self.fc2(F.relu(self.fc1(x.flatten(1))))


def methods() -> nn.Module:
    class Methods(Functional):
        def forward(self, x: Tensor) -> Tensor:
            return self.fc2(self.fc1(F.max_pool2d(self.conv(x).relu(), kernel_size=2).view(x.shape[0], -1)).relu())

    return Methods()


def sequential() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(100, 20), nn.ReLU(), nn.Linear(20, 5)
    )


def ours() -> nn.Module:
    return jitconv.nn.convert(sequential())


def residual() -> nn.Module:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.n = nn.Conv2d(1, 20, 3, padding=1), nn.Conv2d(20, 20, 3, padding=1), nn.BatchNorm2d(20)
            self.fc = nn.Linear(20, 5)

        def forward(self, x: Tensor) -> Tensor:
            z = F.relu(self.a(x))
            return self.fc((F.relu_(self.n(self.b(z))) + z).mean((2, 3)))

    return Residual()


NETWORKS = (Functional, methods, sequential, ours, residual)
X = (6, 1, 12, 12)


def gradients(call: Callable[..., Tensor], model: nn.Module, x: Tensor) -> list[Tensor]:
    x = x.clone().requires_grad_()
    out = call(x)
    loss = F.cross_entropy(out, torch.arange(len(x)) % 5)
    return [out.detach(), *torch.autograd.grad(loss, [x, *model.parameters()])]


def check(call: Any, model: nn.Module, x: Tensor) -> None:
    """The compiled model's outputs and gradients are its eager twin's, in float64: of 0 both leave only roundings."""
    twin = copy.deepcopy(model).double()
    for got, wanted in zip(gradients(call, model, x), gradients(twin, twin, x.double()), strict=True):
        assert torch.allclose(got.double(), wanted, rtol=0, atol=1e-5 * float(wanted.abs().max()) + 1e-7)
    for got, wanted in zip(model.buffers(), twin.buffers(), strict=True):
        assert torch.allclose(got.to(wanted.dtype), wanted)


@pytest.mark.parametrize("build", NETWORKS)
def test_training_gives_eagers_gradients(build: Callable[[], nn.Module]) -> None:
    model = build()
    call = compiled(model, fullgraph=True)
    for _ in range(2):
        check(call, model, torch.randn(X))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1)
    check(call, model, torch.randn(X))


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("build", NETWORKS)
def test_inference_follows_the_weights(build: Callable[[], nn.Module], context: Any) -> None:
    model = build().eval()
    call, x = compiled(model, fullgraph=True), torch.randn(X)
    for _ in range(3):
        with context():
            wanted = model(x)
            assert torch.allclose(call(x), wanted, rtol=0, atol=1e-5 * float(wanted.abs().max()))
        with torch.no_grad():
            for tensor in (*model.parameters(), *model.buffers()):
                tensor.mul_(1.5) if tensor.is_floating_point() else None


def test_statistics_gathered_without_gradients_are_kept() -> None:
    model = residual()
    twin, call, x = copy.deepcopy(model), compiled(model, fullgraph=True), torch.randn(X)
    with torch.no_grad():
        assert torch.allclose(call(x), twin(x), atol=1e-5)
    for got, wanted in zip(model.buffers(), twin.buffers(), strict=True):
        assert torch.allclose(got, wanted)


def test_dynamic_shapes_make_a_plan_for_each() -> None:
    model = Functional()
    call = compiled(model, fullgraph=True, dynamic=True)
    for batch in (2, 5, 3, 2):
        check(call, model, torch.randn(batch, *X[1:]))


def test_a_fully_convolutional_network_takes_images_of_any_size() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 2, 1)).eval()
    call = compiled(model, dynamic=True)
    for size in ((1, 3, 9, 8), (2, 3, 12, 15)):
        x = torch.randn(size)
        with torch.no_grad():
            assert torch.allclose(call(x), model(x), atol=1e-5)


def test_graph_breaks_are_bridged() -> None:
    class Broken(Functional):
        def forward(self, x: Tensor) -> Tensor:
            x = F.relu(self.conv(x))
            torch._dynamo.graph_break()
            return self.fc2(F.relu(self.fc1(F.max_pool2d(x, 2).flatten(1))))

    model = Broken()
    check(compiled(model), model, torch.randn(X))


def test_autocast_gives_its_dtype() -> None:
    model = Functional().eval()
    call, x = compiled(model), torch.randn(X)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        got, wanted = call(x), model(x)
    assert got.dtype == wanted.dtype == torch.bfloat16
    assert torch.allclose(got, wanted, atol=0.05)


def test_several_models_and_replaced_weights() -> None:
    first, second = Functional(), sequential()
    calls = compiled(first), compiled(second)
    x = torch.randn(X)
    check(calls[0], first, x)
    check(calls[1], second, x)
    first.conv.weight = nn.Parameter(torch.randn_like(first.conv.weight))
    check(calls[0], first, x)
    check(calls[1], second, x)


def test_float64_is_computed_in_float64() -> None:
    model = Functional().double()
    x = torch.randn(X, dtype=torch.float64)
    for got, wanted in zip(gradients(compiled(model), model, x), gradients(model, model, x), strict=True):
        assert torch.allclose(got, wanted, rtol=0, atol=1e-13)


def test_the_installed_package_names_the_backend() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert project["entry-points"]["torch_dynamo_backends"] == {"jitconv": "jitconv.plan.backend:backend"}
    assert "jitconv" in torch._dynamo.list_backends()
