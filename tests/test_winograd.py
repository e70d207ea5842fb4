"""Winograd's convolutions: the transforms, the bound on inputs made to break it, numbers that are not finite, cores."""

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numba import njit

import jitconv
from jitconv import adversary, functional, variants
from jitconv.cases import CASES, normal
from jitconv.variants.simd import NR_VECTORS, lanes_of
from jitconv.variants.winograd import TiledConvolution, bounds, pack_for, table
from jitconv.variants.winograd.table import BLOCK_BYTES, BLOCK_TILES, Geometry, blocking, method
from jitconv.variants.winograd.transforms import POINTS, Square, input_tile, matrices, output_tile, weight_tile
from jitconv.verify import Expected

NAME, DTYPES = "jit-winograd", ["float32", "float64"]
CONV2D: Any = variants.get(NAME).ops["conv2d"]


def bound_to(x: tuple[int, ...], w: tuple[int, ...], out: tuple[int, ...], padding: Any = (1, 1)) -> Any:
    arrays = tuple((shape, np.dtype("float32")) for shape in (x, w, w[:1], out))
    return CONV2D.bind(arrays, ((1, 1), padding, (1, 1)))


@njit
def _square(x):
    return Square(0, x.shape[1] * x.shape[2], x.shape[2])


@njit
def _input(points, x, y):
    input_tile(points, x, _square(x), y, _square(y))


@njit
def _weight(points, x, y):
    weight_tile(points, x, _square(x), y, _square(y))


@njit
def _output(points, x, y, bias, low, high):
    return output_tile(points, x, _square(x), y, _square(y), bias, 0, (low, high))


@pytest.mark.parametrize("m", POINTS)
def test_the_matrices_are_a_convolution(m: int) -> None:
    b, g, a = matrices(m)
    pixels, taps = np.random.default_rng(0).standard_normal((2, m + 2))
    taps = taps[:3]
    np.testing.assert_allclose(a @ ((g @ taps) * (b @ pixels)), np.correlate(pixels, taps), rtol=0, atol=1e-13)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("m", POINTS)
def test_code_of_the_transforms_on_vectors(m: int, dtype: str) -> None:
    rng, lanes = np.random.default_rng(0), lanes_of(dtype)
    for matrix, run in zip(matrices(m), (_input, _weight, _output), strict=True):
        rows, columns = matrix.shape
        x, y = rng.standard_normal((columns, columns, lanes)).astype(dtype), np.empty((rows, rows, lanes), dtype)
        expected = np.einsum("ir,rcl,jc->ijl", matrix, x.astype("float64"), matrix)
        if run is _output:
            bias = rng.standard_normal(lanes).astype(dtype)
            kind = np.dtype(dtype).type
            assert run(POINTS[m], x, y, bias, kind(-1), kind(2))
            expected = np.clip(expected + bias, -1, 2)
        else:
            run(POINTS[m], x, y)
        np.testing.assert_allclose(y, expected, atol=100 * np.finfo(dtype).eps)


@pytest.mark.parametrize("m", POINTS)
def test_outputs_that_are_not_finite_are_noticed(m: int) -> None:
    lanes = lanes_of("float32")
    for value in (np.inf, -np.inf, np.nan, 3e38):
        x, y = np.zeros((m + 2, m + 2, lanes), "float32"), np.empty((m, m, lanes), "float32")
        x[1, 1, lanes - 1] = value
        x[1, 2, lanes - 1] = 3e38
        bias = np.zeros(lanes, "float32")
        assert not _output(POINTS[m], x, y, bias, np.float32(-np.inf), np.float32(np.inf))


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_bound_holds_for_inputs_made_to_break_it(dtype: str) -> None:
    found = adversary.check_bounds(NAME, dtype)
    assert {one.quantity for one in found} == {"forward", "grad input"}
    assert len(found) == 2 * (len(adversary.cases(dtype)) + 1)
    assert not [one for one in found if not one.ok]


def test_the_bound_is_not_empty() -> None:
    """An error of a hundredth of the largest output is too much, and the search finds more than random numbers do."""
    case = next(case for case in CASES if case.name == "3×3 tiles")
    expected = Expected(case)
    assert expected.own(NAME) == ["forward", "grad input"]
    assert expected.own("jit-tiled") == []
    wrong = {name: value.float() + 0.01 * value.abs().max() for name, value in expected.oracle.items()}
    assert not [one for one in expected.compare(NAME, wrong) if one.ok]
    first, *_, last = adversary.climb(NAME, "forward")
    assert last.bound_used > 2 * first.bound_used


def test_growth_of_the_transforms() -> None:
    """κ² by trying: pixels of ±1 and one tap of 1, for the worst signs of each output."""
    assert bounds.growth(2) == pytest.approx(16)
    assert bounds.growth(4) == pytest.approx(152, rel=0.01)


def test_not_finite_pixels_reach_what_they_reach_in_torch() -> None:
    for value in (np.inf, -np.inf, np.nan):
        for row, column in ((0, 0), (3, 4), (7, 8), (22, 25)):
            x, w = torch.randn(1, 20, 23, 26), torch.randn(35, 20, 3, 3)
            x[0, 7, row, column] = value
            w[3] = 0
            ours = functional.conv2d(x, w, padding=1, variant=NAME)
            theirs = torch.nn.functional.conv2d(x, w, padding=1)
            assert torch.equal(ours.isnan(), theirs.isnan())
            assert torch.equal(ours.isinf(), theirs.isinf())
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-3, equal_nan=True)


def test_filters_that_are_not_finite_go_the_direct_way() -> None:
    x, w, b = torch.randn(1, 20, 23, 26), torch.randn(35, 20, 3, 3), torch.randn(35)
    w[4, 5, 1, 1] = np.inf
    direct = functional.conv2d(x, w, b, variant="jit-tiled")
    assert torch.equal(functional.conv2d(x, w, b, variant=NAME).nan_to_num(), direct.nan_to_num())
    assert pack_for(4, 1, False)(w.numpy()).size == w.numel()


def test_which_shapes_are_computed_in_tiles() -> None:
    large, taps, ones = Geometry(8, 1, 64, 64, 56, 56), (64, 64, 3, 3), (1, 1)
    assert method(large, taps, ones, ones, False) == method(large, taps, ones, ones, True) == 4
    assert method(large, taps, (2, 1), ones, False) is None
    assert method(large, taps, ones, (1, 2), False) is None
    assert method(large, (64, 64, 3, 5), ones, ones, False) is None
    assert method(large._replace(C=1, groups=64), taps, ones, ones, False) is None
    assert method(large._replace(N=1, H=2, W=2), taps, ones, ones, False) == 2
    assert method(large._replace(N=1, H=1, W=1), taps, ones, ones, False) is None
    assert method(large._replace(N=1, H=4, W=4), taps, ones, ones, True) is None  # no sum is long enough to transform


@pytest.mark.parametrize(("cost", "one_image"), [(10, None), (2, 4)])
def test_filters_that_no_cache_holds(cost: int, one_image: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """For few tiles they are transformed only where slow multiplications hide the reading of them."""
    monkeypatch.setattr(table, "READ_COST", cost)
    many, ones = Geometry(1, 1, 512, 512, 7, 7), (1, 1)
    assert [method(many._replace(N=N), (512, 512, 3, 3), ones, ones, False) for N in (1, 2, 8)] == [one_image, 4, 4]
    assert method(many._replace(C=64, K=64), (64, 64, 3, 3), ones, ones, False) == 4


@pytest.mark.parametrize("m", POINTS)
def test_blocks_of_tiles_fit_the_cache(m: int) -> None:
    for C, H, W in ((64, 56, 56), (512, 7, 7), (17, 300, 3), (20, 1, 1000), (4096, 9, 9)):
        geometry = Geometry(9, 1, C, C, H, W)
        images, rows, columns = blocking(geometry, m, np.dtype("float32"))
        tiles = images * rows * columns
        assert 1 <= tiles <= BLOCK_TILES
        assert tiles <= NR_VECTORS * lanes_of("float32") or tiles * (m + 2) ** 2 * C * 4 <= BLOCK_BYTES
        assert images == 1 or (rows, columns) == geometry.tiles(m)


def test_weights_are_packed_by_one_function_for_one_way() -> None:
    one, other = (bound_to((N, 20, 23, 26), (35, 20, 3, 3), (N, 35, 23, 26)) for N in (1, 4))
    assert isinstance(one, TiledConvolution)
    assert one.packs[1] is other.packs[1]
    assert not isinstance(bound_to((1, 3, 23, 26), (35, 3, 3, 3), (1, 35, 23, 26)), TiledConvolution)


def test_weights_that_change_in_place_are_transformed_anew() -> None:
    x, w = torch.randn(1, 20, 23, 26), torch.randn(35, 20, 3, 3)
    for _ in range(3):
        ours = functional.conv2d(x, w, padding=1, variant=NAME)
        torch.testing.assert_close(ours, torch.nn.functional.conv2d(x, w, padding=1), rtol=1e-4, atol=1e-4)
        w *= -2


@pytest.mark.parametrize("shape", [(1, 20, 23, 26), (5, 20, 7, 7), (1, 80, 8, 8)])
def test_the_same_bits_on_any_number_of_cores(shape: tuple[int, ...]) -> None:
    x, w = torch.randn(shape, requires_grad=True), torch.randn(75, shape[1], 3, 3)
    found = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        out = functional.conv2d(x, w, padding=1, variant=NAME)
        found.append((out, *torch.autograd.grad(out.square().sum(), x)))
    assert all(torch.equal(a, b) for one in found[1:] for a, b in zip(found[0], one, strict=True))


def test_conversion_and_variants_built_on_it() -> None:
    model = torch.nn.Sequential(
        torch.nn.Conv2d(20, 24, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv2d(24, 20, 3), torch.nn.MaxPool2d(2)
    )
    x = torch.randn(2, 20, 18, 19)
    converted = jitconv.nn.convert(model, variant=NAME)
    torch.testing.assert_close(converted(x), model(x), rtol=1e-4, atol=1e-4)

    def relu(x: np.ndarray, out: np.ndarray) -> None:
        np.maximum(x, 0, out=out)

    mine = jitconv.register_variant("mine", base=NAME, relu=relu)
    assert mine.bounds
    torch.testing.assert_close(jitconv.nn.convert(model, variant="mine")(x), model(x), rtol=1e-4, atol=1e-4)
    theirs = jitconv.register_variant("theirs", base=NAME, conv2d=variants.get("jit").ops["conv2d"])
    assert set(theirs.bounds) == {"conv2d_grad_input"}  # the new kernel has the usual one


def test_relu_in_the_same_pass() -> None:
    x, w, b = normal_arrays((2, 20, 11, 12), (20, 20, 3, 3), (20,))
    x[0, 3, 4, 4] = np.nan
    both, one = np.empty((2, 20, 11, 12), "float32"), np.empty((2, 20, 11, 12), "float32")
    ops, constants = variants.get(NAME).ops, ((1, 1), (1, 1), (1, 1))
    ops["conv2d"](x, w, b, *constants, one)
    ops["conv2d_relu"](x, w, b, *constants, both)
    np.testing.assert_array_equal(both, np.where(one < 0, 0, one))


def test_pooling_after_it() -> None:
    x, w, b = normal_arrays((2, 20, 11, 12), (20, 20, 3, 3), (20,))
    z, out, indices = (
        np.empty((2, 20, 11, 12), "float32"),
        np.empty((2, 20, 5, 6), "float32"),
        np.empty((2, 20, 5, 6), int),
    )
    ops, constants, pooling = variants.get(NAME).ops, ((1, 1), (1, 1), (1, 1)), ((2, 2), (2, 2), (0, 0), (1, 1))
    ops["conv2d_max_pool2d"](x, w, b, *constants, (11, 12), *pooling, out, indices)
    ops["conv2d"](x, w, b, *constants, z)
    np.testing.assert_array_equal(out, z[:, :, :10].reshape(2, 20, 5, 2, 6, 2).max((3, 5)))


def normal_arrays(*shapes: tuple[int, ...]) -> list[np.ndarray]:
    return [normal(np.random.default_rng(0), shape).astype("float32") for shape in shapes]


def test_the_example_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Path(__file__).parent.parent / "examples" / "ladder"
    monkeypatch.syspath_prepend(str(folder))
    rung = importlib.import_module("rung")
    by_hand = rung.load(folder / "winograd_by_hand.py")
    given = rung.arrays("resnet", images=1)
    by_hand.conv2d(*given)
    assert rung.error(by_hand, "resnet", *given) <= 1


def test_it_is_never_the_default() -> None:
    assert NAME not in variants.BEST.values()
    assert variants.resolve(None, "cpu").name == "jit-tiled"
