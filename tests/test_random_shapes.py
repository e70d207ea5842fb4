"""Hypothesis looks for shapes and arguments that the table of cases forgot."""

import pytest
import torch
import torch.nn.functional as T
from conftest import ANY_SHAPE
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jitconv import functional as F
from jitconv.cases import Case
from jitconv.verify import check
from tests.fuzz.draw import cases, convolutions, fully_connected, poolings

thorough = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)


def assert_right(case: Case, variant: str) -> None:
    wrong = [result for dtype in ("float32", "float64") for result in check(case, variant, dtype) if not result.ok]
    assert not wrong


@pytest.mark.parametrize("variant", ANY_SHAPE)
@thorough
@given(case=cases(convolutions()))
def test_any_convolution(case: Case, variant: str) -> None:
    assert_right(case, variant)


@pytest.mark.parametrize("variant", ANY_SHAPE)
@thorough
@given(case=cases(poolings()))
def test_any_pooling(case: Case, variant: str) -> None:
    assert_right(case, variant)


@pytest.mark.parametrize("variant", ANY_SHAPE)
@thorough
@given(case=cases(fully_connected()))
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
