"""The torch modules: inherited in everything but forward, and swapped into a model without changing it."""

import copy
import io

import pytest
import torch
from torch import nn

import jitconv
from jitconv.nn import REPLACEMENTS, convert


def network() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding="same", padding_mode="reflect"),
        nn.ReLU(inplace=True),
        nn.BatchNorm2d(8),
        nn.MaxPool2d(2, ceil_mode=True),
        nn.Sequential(nn.Conv2d(8, 4, 3, stride=2, groups=2, bias=False), nn.Flatten()),
        nn.Linear(4 * 2 * 2, 5),
        nn.LogSoftmax(dim=1),
    )


def test_a_converted_model_gives_the_same_results_and_gradients(variant: str) -> None:
    model = network()
    converted = convert(model, variant)
    assert [type(m) for m in model.modules() if type(m) in REPLACEMENTS.values()] == []
    for ours, theirs in zip(converted.modules(), model.modules(), strict=True):
        assert isinstance(ours, REPLACEMENTS.get(type(theirs), type(theirs)))
    x = torch.randn(2, 3, 9, 9)
    grads = []
    for module in (model, converted):
        module.zero_grad()
        module(x).square().sum().backward()
        grads.append([p.grad.clone() for p in module.parameters()])
    torch.testing.assert_close(converted.eval()(x), model.eval()(x))
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-4, atol=1e-4)


def test_weights_are_shared_and_the_tree_is_kept() -> None:
    model = network()
    seen = []
    model[0].register_forward_hook(lambda module, args, out: seen.append(type(module)))
    converted = convert(model, "vector")
    assert list(converted.state_dict()) == list(model.state_dict())
    assert all(a is b for a, b in zip(converted.parameters(), model.parameters(), strict=True))
    assert converted[2].running_mean is model[2].running_mean
    converted(torch.randn(1, 3, 9, 9))
    assert seen == [jitconv.nn.Conv2d]
    assert convert(model, inplace=True) is model
    assert type(model[0]) is jitconv.nn.Conv2d


def test_layers_that_jitconv_does_not_know_are_left_alone() -> None:
    class Scaled(nn.Linear):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(input)

    converted = convert(nn.Sequential(Scaled(3, 2), nn.Sigmoid()))
    assert [type(m) for m in converted] == [Scaled, nn.Sigmoid]


def test_converting_again_changes_the_variant() -> None:
    once = convert(network(), "jit")
    assert {m.variant for m in convert(once, "vector").modules() if hasattr(m, "variant")} == {"vector"}
    assert {m.variant for m in once.modules() if hasattr(m, "variant")} == {"jit"}


def test_what_cannot_be_converted() -> None:
    with pytest.raises(TypeError, match=r"model must be a torch.nn.Module, got function"):
        convert(network)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"variant must be one of .*, got 'fast'"):
        convert(network(), "fast")


def test_repr_shows_the_variant() -> None:
    assert (
        repr(jitconv.nn.Linear(3, 2, variant="jit"))
        == "Linear(in_features=3, out_features=2, bias=True, variant='jit')"
    )
    assert repr(jitconv.nn.ReLU()) == "ReLU()"


def test_simple_conv_net_is_the_network_of_the_study(variant: str) -> None:
    model = jitconv.SimpleConvNet(variant=variant)
    plain = nn.Sequential(
        nn.Conv2d(1, 20, 5), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(2880, 500), nn.ReLU(), nn.Linear(500, 10)
    )
    plain.load_state_dict(dict(zip(plain.state_dict(), model.state_dict().values(), strict=True)))
    x = torch.rand(1, 1, 28, 28)
    torch.testing.assert_close(model(x), plain(x))
    torch.testing.assert_close(model.predict(x), plain(x).softmax(1))


def test_saved_copied_and_loaded() -> None:
    model = jitconv.SimpleConvNet(variant="jit")
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    other = jitconv.SimpleConvNet(variant="vector")
    other.load_state_dict(torch.load(file, weights_only=True))
    x = torch.rand(2, 1, 28, 28)
    torch.testing.assert_close(other(x), copy.deepcopy(model)(x))


def test_cross_entropy_loss_module(variant: str) -> None:
    options = {"weight": torch.rand(4), "ignore_index": 1, "label_smoothing": 0.1, "reduction": "sum"}
    logits, target = torch.randn(5, 4), torch.tensor([0, 1, 2, 3, 0])
    ours = jitconv.nn.CrossEntropyLoss(**options, variant=variant)
    torch.testing.assert_close(ours(logits, target), nn.CrossEntropyLoss(**options)(logits, target))
