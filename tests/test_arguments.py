"""Bad input: where torch raises we raise, and the message names the argument and its value."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as T

from jitconv import functional as F

x, w, b = torch.randn(2, 4, 7, 6), torch.randn(6, 4, 3, 3), torch.randn(6)
logits, target = torch.randn(3, 4), torch.tensor([0, 1, 2])

# (layer, positional arguments, keyword arguments, the argument that the message must name, and a value in it)
BAD: list[tuple[str, tuple[Any, ...], dict[str, Any], str, str]] = [
    ("conv2d", (x, w), {"stride": 0}, "stride", "got 0"),
    ("conv2d", (x, w), {"stride": (0, 1)}, "stride", "got (0, 1)"),
    ("conv2d", (x, w), {"stride": (1, 1, 1)}, "stride", "got (1, 1, 1)"),
    ("conv2d", (x, w), {"stride": ()}, "stride", "got ()"),
    ("conv2d", (x, w), {"stride": 1.5}, "stride", "got 1.5"),
    ("conv2d", (x, w), {"stride": True}, "stride", "got True"),
    ("conv2d", (x, w), {"padding": -1}, "padding", "got -1"),
    ("conv2d", (x, w), {"padding": "foo"}, "padding", "got 'foo'"),
    ("conv2d", (x, w), {"padding": "same", "stride": 2}, "padding", "stride 2"),
    ("conv2d", (x, w), {"dilation": 0}, "dilation", "got 0"),
    ("conv2d", (x, w), {"dilation": 5}, "weight", "(11, 11)"),
    ("conv2d", (x, w), {"groups": 0}, "groups", "got 0"),
    ("conv2d", (x, w), {"groups": 3}, "input", "4·3"),
    ("conv2d", (x, w[:5, :2]), {"groups": 2}, "groups", "got 2"),
    ("conv2d", (x[0, 0], w), {}, "input", "(7, 6)"),
    ("conv2d", (x[None], w), {}, "input", "(1, 2, 4, 7, 6)"),
    ("conv2d", (x, w[0]), {}, "weight", "(4, 3, 3)"),
    ("conv2d", (x[:, :3], w), {}, "input", "got 3"),
    ("conv2d", (x[:, :, :2], w), {}, "weight", "(2, 6)"),
    ("conv2d", (x[:, :, :0], w), {"padding": 3}, "input", "(2, 4, 0, 6)"),
    ("conv2d", (x, w[:0]), {}, "weight", "(0, 4, 3, 3)"),
    ("conv2d", (x, w[:, :, :0]), {}, "weight", "(6, 4, 0, 3)"),
    ("conv2d", (x, w, b[:5]), {}, "bias", "(5,)"),
    ("conv2d", (x, w, b[:, None]), {}, "bias", "(6, 1)"),
    ("conv2d", (x, w.double()), {}, "weight", "float64"),
    ("conv2d", (x, w, b.double()), {}, "bias", "float64"),
    ("conv2d", (x.numpy(), w), {}, "weight", "Tensor"),
    ("conv2d", (x, w, [0.0] * 6), {}, "bias", "list"),
    ("conv2d", (x.tolist(), w), {}, "input", "list"),
    ("max_pool2d", (x, 0), {}, "kernel_size", "got 0"),
    ("max_pool2d", (x, -1), {}, "kernel_size", "got -1"),
    ("max_pool2d", (x, (1, 2, 3)), {}, "kernel_size", "(1, 2, 3)"),
    ("max_pool2d", (x, 2.0), {}, "kernel_size", "got 2.0"),
    ("max_pool2d", (x, 8), {}, "kernel_size", "8"),
    ("max_pool2d", (x, 2), {"stride": 0}, "stride", "got 0"),
    ("max_pool2d", (x, 2), {"padding": 2}, "padding", "got 2"),
    ("max_pool2d", (x, 3), {"padding": 2, "dilation": 2}, "padding", "got 2"),
    ("max_pool2d", (x, 2), {"padding": -1}, "padding", "got -1"),
    ("max_pool2d", (x, 2), {"dilation": 0}, "dilation", "got 0"),
    ("max_pool2d", (x[0, 0], 2), {}, "input", "(7, 6)"),
    ("max_pool2d", (x[:, :0], 2), {}, "input", "(2, 0, 7, 6)"),
    ("max_pool2d", (x[:, :, :0], 2), {}, "input", "(2, 4, 0, 6)"),
    ("linear", (logits, torch.randn(5, 3)), {}, "input", "(3, 4)"),
    ("linear", (logits, torch.randn(1, 5, 4)), {}, "weight", "(1, 5, 4)"),
    ("linear", (torch.tensor(1.0), torch.randn(5, 4)), {}, "input", "()"),
    ("linear", (logits, torch.randn(5, 4), torch.randn(4)), {}, "bias", "(4,)"),
    ("linear", (logits, torch.randn(5, 4).double()), {}, "weight", "float64"),
    ("flatten", (x,), {"start_dim": 2, "end_dim": 1}, "start_dim", "2 and 1"),
    ("flatten", (x,), {"end_dim": 4}, "end_dim", "got 4"),
    ("flatten", (x,), {"start_dim": -5}, "start_dim", "got -5"),
    ("relu", ([1.0],), {}, "input", "list"),
    ("softmax", (logits,), {"dim": 2}, "dim", "got 2"),
    ("softmax", (logits.long(),), {"dim": 1}, "input", "int64"),
    ("log_softmax", (logits,), {"dim": -3}, "dim", "got -3"),
    ("cross_entropy", (logits, torch.tensor([0, 1, 4])), {}, "target", "4"),
    ("cross_entropy", (logits, torch.tensor([0, 1, -1])), {}, "target", "-1"),
    ("cross_entropy", (logits, target.int()), {}, "target", "int32"),
    ("cross_entropy", (logits, target.float()), {}, "target", "float32"),
    ("cross_entropy", (logits, target[:2]), {}, "target", "(2,)"),
    ("cross_entropy", (logits, target[:, None]), {}, "target", "(3, 1)"),
    ("cross_entropy", (logits, target, torch.ones(3)), {}, "weight", "(3,)"),
    ("cross_entropy", (logits, target, torch.ones(4).double()), {}, "weight", "float64"),
    ("cross_entropy", (logits, target), {"reduction": "foo"}, "reduction", "'foo'"),
    ("cross_entropy", (logits, target), {"label_smoothing": 1.5}, "label_smoothing", "1.5"),
    ("cross_entropy", (logits, logits.softmax(1)), {"ignore_index": 2}, "ignore_index", "2"),
    ("cross_entropy", (logits, target.numpy()), {}, "target", "ndarray"),
]


@pytest.mark.parametrize(
    ("layer", "args", "kwargs", "named", "value"), BAD, ids=[f"{layer} {name} {v}" for layer, _, _, name, v in BAD]
)
def test_where_torch_raises_we_raise(
    layer: str, args: tuple[Any, ...], kwargs: dict[str, Any], named: str, value: str, variant: str
) -> None:
    theirs: Callable[..., Any] = getattr(T, layer, None) or getattr(torch, layer)
    with pytest.raises(Exception):  # noqa: B017, PT011 (torch's own choice of class is not ours to test)
        theirs(*args, **kwargs)
    with pytest.raises((ValueError, TypeError)) as caught:
        getattr(F, layer)(*args, **kwargs, variant=variant)
    assert named in str(caught.value)
    assert value in str(caught.value)


def test_an_integer_layer_is_refused() -> None:
    with pytest.raises(TypeError, match=r"input must be float32, float64, float16 or bfloat16, got torch\.int64"):
        F.relu(torch.arange(3))
    with pytest.raises(TypeError, match="input must be float32 or float64, got >f4"):
        F.relu(np.zeros(3, ">f4"))


def test_what_torch_accepts_we_accept(variant: str) -> None:
    assert F.conv2d(x, w, stride=(2,), padding=[1, 2], variant=variant).shape == (2, 6, 4, 4)
    assert F.max_pool2d(x, (2,), stride=(), variant=variant).shape == (2, 4, 3, 3)
    assert F.conv2d(x, w, stride=np.int64(2), variant=variant).shape == (2, 6, 3, 2)  # type: ignore[arg-type]
    assert F.linear(logits, torch.randn(5, 4), variant=variant).shape == (3, 5)


def test_an_unknown_variant_is_named() -> None:
    with pytest.raises(ValueError, match=r"variant must be one of interpreted, jit, .*, got 'fast'"):
        F.relu(x, variant="fast")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("name", ["cuda", "cuda-tiled"])
def test_a_variant_on_the_wrong_device_says_so(name: str) -> None:
    with pytest.raises(ValueError, match=f"variant '{name}' runs on cuda, but input is on cpu: .*(installed|GPU)"):
        F.relu(x, variant=name)
