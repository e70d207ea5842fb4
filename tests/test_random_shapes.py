"""Hypothesis looks for shapes and arguments that the table of cases forgot."""

import pytest
import torch
import torch.nn.functional as T
from conftest import ANY_SHAPE
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jitconv import functional as F
from jitconv.cases import Case, normal, sprinkled, ties
from jitconv.verify import check

FILLS = st.sampled_from([normal, ties, sprinkled(float("nan")), sprinkled(float("inf"), float("-inf"))])
pairs = st.tuples(st.integers(1, 3), st.integers(1, 3))
thorough = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)


@st.composite
def convolutions(draw: st.DrawFn) -> Case:
    groups = draw(st.integers(1, 3))
    c_group, filters = draw(st.integers(1, 5)), draw(st.integers(1, 6))
    kernel, stride, dilation = draw(st.tuples(st.integers(1, 5), st.integers(1, 5))), draw(pairs), draw(pairs)
    padding = draw(st.tuples(st.integers(0, 3), st.integers(0, 3)))
    least = [max(1, d * (k - 1) + 1 - 2 * p) for k, d, p in zip(kernel, dilation, padding, strict=True)]
    height, width = draw(st.integers(least[0], least[0] + 12)), draw(st.integers(least[1], least[1] + 40))
    shapes = {
        "input": (draw(st.integers(0, 3)), c_group * groups, height, width),
        "weight": (filters * groups, c_group, *kernel),
    }
    if draw(st.booleans()):
        shapes["bias"] = (filters * groups,)
    arguments = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    return Case("conv2d", "random", shapes, arguments, fill=draw(FILLS))


@st.composite
def poolings(draw: st.DrawFn) -> Case:
    kernel, stride, dilation = draw(pairs), draw(pairs), draw(pairs)
    padding = tuple(draw(st.integers(0, k // 2)) for k in kernel)
    least = [max(1, d * (k - 1) + 1 - 2 * p) for k, d, p in zip(kernel, dilation, padding, strict=True)]
    height, width = draw(st.integers(least[0], least[0] + 12)), draw(st.integers(least[1], least[1] + 40))
    arguments = {
        "kernel_size": kernel, "stride": stride, "padding": padding, "dilation": dilation,
        "ceil_mode": draw(st.booleans()),
    }  # fmt: skip
    shape = (draw(st.integers(0, 2)), draw(st.integers(1, 3)), height, width)
    return Case("max_pool2d", "random", {"input": shape}, arguments, fill=draw(FILLS))


@st.composite
def fully_connected(draw: st.DrawFn) -> Case:
    n, inputs, outputs = draw(st.integers(0, 40)), draw(st.integers(0, 300)), draw(st.integers(0, 70))
    shapes = {"input": (n, inputs), "weight": (outputs, inputs), "bias": (outputs,)}
    return Case("linear", "random", shapes, fill=draw(FILLS))


def assert_right(case: Case, variant: str) -> None:
    wrong = [result for dtype in ("float32", "float64") for result in check(case, variant, dtype) if not result.ok]
    assert not wrong


@pytest.mark.parametrize("variant", ANY_SHAPE)
@thorough
@given(case=convolutions())
def test_any_convolution(case: Case, variant: str) -> None:
    assert_right(case, variant)


@pytest.mark.parametrize("variant", ANY_SHAPE)
@thorough
@given(case=poolings())
def test_any_pooling(case: Case, variant: str) -> None:
    assert_right(case, variant)


@pytest.mark.parametrize("variant", ANY_SHAPE)
@thorough
@given(case=fully_connected())
def test_any_fully_connected_layer(case: Case, variant: str) -> None:
    assert_right(case, variant)


small = st.integers(-1, 4)


def outcome(layer: object, *args: object) -> object:
    try:
        return tuple(layer(*args).shape)  # type: ignore[operator]
    except Exception:  # torch raises IndexError for some empty shapes
        return "raises"


@settings(max_examples=600, deadline=None, derandomize=True)
@given(
    x=st.tuples(small, st.integers(1, 4), small, small).map(lambda s: [max(0, v) for v in s]),
    w=st.tuples(small, st.integers(1, 4), small, small).map(lambda s: [max(0, v) for v in s]),
    stride=st.tuples(small, small) | small,
    padding=st.tuples(small, small) | small | st.sampled_from(["same", "valid", "half"]),
    dilation=st.tuples(small, small) | small,
    groups=st.integers(-1, 3),
)
def test_conv2d_raises_exactly_where_torch_does(x, w, stride, padding, dilation, groups) -> None:
    arguments = (torch.ones(x), torch.ones(w), None, stride, padding, dilation, groups)
    assert outcome(F.conv2d, *arguments) == outcome(T.conv2d, *arguments)


@settings(max_examples=600, deadline=None, derandomize=True)
@given(
    x=st.tuples(small, small, small, small).map(lambda s: [max(0, v) for v in s]),
    kernel=st.tuples(small, small) | small,
    stride=st.tuples(small, small) | small | st.none(),
    padding=st.tuples(small, small) | small,
    dilation=st.tuples(small, small) | small,
    ceil_mode=st.booleans(),
)
def test_max_pool2d_raises_exactly_where_torch_does(x, kernel, stride, padding, dilation, ceil_mode) -> None:
    arguments = (torch.ones(x), kernel, stride, padding, dilation, ceil_mode)
    assert outcome(F.max_pool2d, *arguments) == outcome(T.max_pool2d, *arguments)
