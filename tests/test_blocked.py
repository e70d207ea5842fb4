"""Blocked convolutions as a plan calls them: images in both layouts, packed weights, and what an epilogue may do."""

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as T

from jitconv import functional as F
from jitconv import variants
from jitconv.variants.simd import lanes_of
from jitconv.variants.tiled import blocked
from jitconv.variants.tiled.blocked import Epilogue
from jitconv.variants.workers import ALONE

ACTIVATIONS: dict[Any, Any] = {
    None: lambda z: z,
    "relu": T.relu,
    (0.0, 6.0): T.relu6,
    (-0.5, 2.0): lambda z: z.clamp(-0.5, 2.0),
    "hardswish": T.hardswish,
    "silu": T.silu,
}
SHAPES = (  # input, weight, stride, padding, dilation, groups
    ((2, 20, 9, 15), (40, 20, 3, 3), (1, 1), (1, 1), (1, 1), 1),
    ((1, 3, 17, 19), (18, 3, 7, 7), (2, 2), (3, 3), (1, 1), 1),
    ((2, 33, 8, 7), (33, 1, 3, 3), (2, 1), (1, 1), (1, 1), 33),
    ((1, 32, 6, 7), (64, 16, 1, 2), (1, 2), (0, 2), (1, 3), 2),
    ((2, 40, 5, 9), (16, 40, 1, 1), (1, 1), (0, 0), (1, 1), 1),
)


def to_blocked(x: np.ndarray) -> np.ndarray:
    (N, C, H, W), lanes = x.shape, lanes_of(x.dtype)
    blocks = -(-C // lanes)
    full = np.zeros((N, blocks * lanes, H, W), x.dtype)
    full[:, :C] = x
    return np.ascontiguousarray(full.reshape(N, blocks, lanes, H, W).transpose(0, 1, 3, 4, 2))


def from_blocked(x: np.ndarray, C: int) -> np.ndarray:
    N, blocks, H, W, lanes = x.shape
    return x.transpose(0, 1, 4, 2, 3).reshape(N, blocks * lanes, H, W)[:, :C]


def normal(*shape: int, dtype: str = "float32") -> np.ndarray:
    return np.random.default_rng(len(shape)).standard_normal(shape).astype(dtype)


def convolved(shape: Any, layouts: tuple[str, str], epilogue: Epilogue, dtype: str = "float32") -> Any:
    """What the kernel gives and what torch does, both (N, C, H, W), and the sum of magnitudes behind each number."""
    x_shape, w_shape, *geometry, groups = shape
    x, w, b = normal(*x_shape, dtype=dtype), normal(*w_shape, dtype=dtype), normal(w_shape[0], dtype=dtype)
    wide = [torch.from_numpy(array).double() for array in (x, w, b)]
    z = T.conv2d(*wide, *geometry, groups)
    size = T.conv2d(*(array.abs() for array in wide), *geometry, groups)
    rest = normal(*z.shape, 1, dtype=dtype)[..., 0] if epilogue.residual else None
    if rest is not None:
        z, size = z + torch.from_numpy(rest), size + torch.from_numpy(rest).abs()
    kernel = blocked.bind(x_shape, w_shape, dtype, *geometry, groups, *layouts, epilogue)
    out = np.full(z.shape, np.nan, dtype)
    if layouts[0] == "blocked":
        x = to_blocked(x)
    if layouts[1] == "blocked":
        out, rest = to_blocked(out), None if rest is None else to_blocked(rest)
    kernel(x, kernel.pack(w), b, rest, out)
    found = from_blocked(out, w_shape[0]) if layouts[1] == "blocked" else out
    return found, ACTIVATIONS[epilogue.activation](z).numpy(), size.numpy()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("layouts", [("nchw", "blocked"), ("blocked", "nchw"), ("blocked", "blocked")], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_layouts(shape: Any, layouts: tuple[str, str], threads: int, dtype: str) -> None:
    torch.set_num_threads(threads)
    found, expected, size = convolved(shape, layouts, Epilogue(), dtype)
    assert (np.abs(found - expected) <= 4 * np.finfo(dtype).eps * size).all()


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("layout", ["nchw", "blocked"])
@pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
def test_epilogues(activation: Any, layout: str, residual: bool) -> None:
    found, expected, size = convolved(SHAPES[0], (layout, layout), Epilogue(activation, residual))
    assert (np.abs(found - expected) <= 6 * np.finfo("float32").eps * (1 + size)).all()


def test_weights_are_packed_alike_for_any_batch() -> None:
    (N, *image), weight, *geometry, groups = SHAPES[0]
    packs = [
        blocked.bind((n, *image), weight, "float32", *geometry, groups, "nchw", "nchw", Epilogue()).pack for n in (N, 5)
    ]
    assert packs[0] == packs[1]
    assert len(set(packs)) == 1


def test_numbers_outside_the_channels_are_not_read() -> None:
    x_shape, w_shape, *geometry, groups = SHAPES[0]
    x, w, b = to_blocked(normal(*x_shape)), normal(*w_shape), normal(w_shape[0])
    kernel = blocked.bind(x_shape, w_shape, "float32", *geometry, groups, "blocked", "nchw", Epilogue())
    outs = []
    for rest in (0, np.nan):
        x[:, -1, :, :, x_shape[1] % lanes_of(np.float32) :] = rest
        outs.append(np.empty((x_shape[0], w_shape[0], *x_shape[2:]), np.float32))
        kernel(x, kernel.pack(w), b, None, outs[-1])
    np.testing.assert_array_equal(*outs)


def test_groups_that_are_no_whole_blocks_have_no_blocked_layout() -> None:
    with pytest.raises(ValueError, match="groups of 5 and 20 channels are no whole blocks"):
        blocked.bind((1, 10, 8, 8), (40, 5, 3, 3), "float32", (1, 1), (1, 1), (1, 1), 2, "blocked", "nchw", Epilogue())


def test_long_sums_of_positive_numbers_stay_within_the_bound() -> None:
    filters = 2048  # 18432 terms, which one level of blocks would round too often
    x, w = torch.rand(1, 16, 7, 7), torch.rand(filters, 16, 3, 3)
    grad = torch.rand(1, filters, 7, 7)
    exact = torch.nn.grad.conv2d_input(x.shape, w.double(), grad.double(), padding=1)
    leaf = x.requires_grad_()
    (found,) = torch.autograd.grad(F.conv2d(leaf, w, padding=1), leaf, grad)
    assert ((found.double() - exact).abs() <= 4 * torch.finfo(torch.float32).eps * exact).all()


@pytest.mark.parametrize("workers", [2, 3, 8, 50])
def test_uneven_passes_are_shared_out_evenly_and_whole(workers: int) -> None:
    (C, O), rng = (160, 480), np.random.default_rng(0)
    once = (1, 1), (0, 0), (1, 1), 1
    kernel = blocked.bind((1, C, 7, 7), (O, C, 1, 1), np.float32, *once, "blocked", "blocked", Epilogue())
    (part,) = kernel.parts
    assert part.launch.filters % part.launch.together, "the last pass has fewer filter tiles"
    x = rng.standard_normal(C * 49, np.float32)
    packed = kernel.pack(rng.standard_normal((O, C, 1, 1), np.float32))
    results = []
    for some in (1, workers):
        out = np.full(O * 49, np.nan, np.float32)
        ((driver, args),) = kernel.calls(x, packed, np.zeros(O, np.float32), None, out)
        driver.run(ALONE, some, *args)
        results.append(out)
    np.testing.assert_array_equal(*results)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_gradients_of_no_images_are_zero(dtype: str) -> None:
    ops, once = variants.get("jit-tiled").ops, ((1, 1), (0, 0), (1, 1))
    grad, x = np.empty((0, 16, 5, 5), dtype), np.empty((0, 16, 5, 5), dtype)
    weight, bias = np.full((16, 16, 1, 1), np.nan, dtype), np.full(16, np.nan, dtype)
    ops["conv2d_grad_weight"](grad, x, *once, weight)
    ops["conv2d_grad_bias"](grad, bias)
    assert not weight.any()
    assert not bias.any()
