"""What is drawn: cases of layers and small networks, as plain data that can be written as JSON and run again."""

from typing import Any

import numpy as np
from hypothesis import assume
from hypothesis import strategies as st

from jitconv import shapes
from jitconv.cases import (
    INF,
    NAN,
    Case,
    channels_last,
    constant,
    contiguous,
    normal,
    outliers,
    positive,
    read_only,
    repeated,
    sliced,
    sprinkled,
    ties,
    transposed,
)
from jitconv.variants.tiled.windows import windows
from tests.plan.test_networks import LAYER as STEP

HUGE = 1e15  # whose square is a number in float32
TINY = (1e-40, -1e-40, 1e-310, -1e-310)  # denormal numbers of float32 and of float64
FILLS = {
    "normal": normal,
    "positive": positive,
    "outliers": outliers,
    "ties": ties,
    "zeros": constant(0.0),
    "zeros and −zeros": sprinkled(0.0, -0.0, share=0.5),
    "NaN": sprinkled(NAN),
    "infinities": sprinkled(INF, -INF),
    "NaN and infinities": sprinkled(NAN, INF, -INF, share=0.02),
    "huge": sprinkled(HUGE, -HUGE),
    "denormals": sprinkled(*TINY, share=0.5),
    "only denormals": sprinkled(*TINY, share=1.1),
}
NOT_FINITE = ("NaN", "infinities", "NaN and infinities")
LAYOUTS = {
    "contiguous": contiguous,
    "transposed": transposed,
    "sliced": sliced,
    "channels last": channels_last,
    "repeated": repeated,
    "read-only": read_only,
}
pairs = st.tuples(st.integers(1, 3), st.integers(1, 3))


@st.composite
def convolutions(draw: st.DrawFn) -> dict[str, Any]:
    groups = draw(st.integers(1, 3))
    c_group, filters = draw(st.integers(1, 5)), draw(st.integers(1, 6))
    if draw(st.booleans()):  # what fills registers
        c_group, filters = draw(st.sampled_from((16, 17, 33))), draw(st.sampled_from((16, 31, 32)))
    kernel, stride, dilation = draw(st.tuples(st.integers(1, 5), st.integers(1, 5))), draw(pairs), draw(pairs)
    if draw(st.booleans()):  # what Winograd computes
        kernel, stride, dilation = (3, 3), (1, 1), (1, 1)
    padding = draw(st.tuples(st.integers(0, 3), st.integers(0, 3)))
    height, width = draw(images(kernel, dilation, padding))
    arrays = {
        "input": (draw(st.integers(0, 3)), c_group * groups, height, width),
        "weight": (filters * groups, c_group, *kernel),
    }
    if draw(st.booleans()):
        arrays["bias"] = (filters * groups,)
    arguments = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    return {"layer": "conv2d", "shapes": arrays, "arguments": arguments}


def images(kernel: Any, dilation: Any, padding: Any) -> st.SearchStrategy[tuple[int, int]]:
    """Sizes with room for at least one window."""
    least = [max(1, d * (k - 1) + 1 - 2 * p) for k, d, p in zip(kernel, dilation, padding, strict=True)]
    return st.tuples(st.integers(least[0], least[0] + 12), st.integers(least[1], least[1] + 40))


@st.composite
def poolings(draw: st.DrawFn) -> dict[str, Any]:
    kernel, stride, dilation = draw(pairs), draw(pairs), draw(pairs)
    padding = tuple(draw(st.integers(0, k // 2)) for k in kernel)
    arguments = {
        "kernel_size": kernel, "stride": stride, "padding": padding, "dilation": dilation,
        "ceil_mode": draw(st.booleans()),
    }  # fmt: skip
    shape = (draw(st.integers(0, 2)), draw(st.integers(1, 3)), *draw(images(kernel, dilation, padding)))
    *_, size = shapes.pooling(shape, *arguments.values())
    axes = zip(shape[2:], size, kernel, stride, padding, dilation, strict=True)
    assume(all((first < last).all() for axis in axes for first, last in [windows(*axis).T]))  # else torch writes astray
    return {"layer": "max_pool2d", "shapes": {"input": shape}, "arguments": arguments}


@st.composite
def fully_connected(draw: st.DrawFn) -> dict[str, Any]:
    n, inputs, outputs = draw(st.integers(0, 40)), draw(st.integers(0, 300)), draw(st.integers(0, 70))
    arrays = {"input": (n, inputs), "weight": (outputs, inputs)}
    if draw(st.booleans()):
        arrays["bias"] = (outputs,)
    return {"layer": "linear", "shapes": arrays, "arguments": {}}


anything = st.lists(st.integers(0, 20), min_size=1, max_size=4).map(tuple)


@st.composite
def elementwise(draw: st.DrawFn) -> dict[str, Any]:
    shape = draw(anything)
    layer = draw(st.sampled_from(("relu", "flatten", "softmax", "log_softmax")))
    first, last = sorted(draw(st.tuples(*[st.integers(0, len(shape) - 1)] * 2)))
    arguments = {"relu": {}, "flatten": {"start_dim": first, "end_dim": last}}.get(layer, {"dim": first})
    return {"layer": layer, "shapes": {"input": shape}, "arguments": arguments}


@st.composite
def losses(draw: st.DrawFn) -> dict[str, Any]:
    n, classes = draw(st.integers(1, 30)), draw(st.integers(1, 40))
    shape = (n, classes, *draw(st.lists(st.integers(1, 9), max_size=2)))
    arguments = {
        "reduction": draw(st.sampled_from(("none", "sum", "mean"))),
        "label_smoothing": draw(st.sampled_from((0.0, 0.1, 1.0))),
        "ignore_index": draw(st.integers(-1, classes)),
    }
    return {
        "layer": "cross_entropy",
        "shapes": {"input": shape},
        "arguments": arguments,
        "weighted": draw(st.booleans()),
    }


LAYERS = convolutions() | poolings() | fully_connected() | elementwise() | losses()


@st.composite
def examples(draw: st.DrawFn, variants: tuple[str, ...]) -> dict[str, Any]:
    """A layer or a network, and what it is given."""
    common = {
        "variant": draw(st.sampled_from(variants)),
        "dtype": draw(st.sampled_from(("float32", "float64"))),
        "threads": draw(st.integers(1, 3)),
        "seed": draw(st.integers(0, 3)),
    }
    if draw(st.integers(0, 9)):
        example = {**draw(LAYERS), **common, **draw(values())}
        if example["layer"] == "cross_entropy" and example["fill"] in NOT_FINITE:
            example["arguments"]["ignore_index"] = -100  # an ignored sample has no gradient here, and NaN in torch
        return example
    shape = (draw(st.integers(1, 3)), draw(st.sampled_from((3, 16))), draw(st.integers(1, 9)), draw(st.integers(1, 9)))
    return {"plan": draw(st.lists(STEP, min_size=1, max_size=7)), "shape": shape, **common}


@st.composite
def values(draw: st.DrawFn) -> dict[str, Any]:
    fill = draw(st.sampled_from(tuple(FILLS)))
    # Whether the zeros around an image meet an infinite tap is not the same in all of torch.
    every = fill not in NOT_FINITE and draw(st.booleans())
    return {"fill": fill, "fill all": every, "layout": draw(st.sampled_from(tuple(LAYOUTS)))}


def cases(layers: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[Case]:
    """Cases of these layers, with values that have often been treated wrongly."""
    fills = st.sampled_from(("normal", "ties", "NaN", "infinities"))
    return st.builds(lambda layer, fill: case_of({**layer, "fill": fill}), layers, fills)


def case_of(example: dict[str, Any]) -> Case:
    """The case of a layer that is described so; sequences may be lists, as JSON has them."""
    arrays = {name: tuple(shape) for name, shape in example["shapes"].items()}
    arguments = {name: tuple(v) if isinstance(v, list) else v for name, v in example["arguments"].items()}
    fixed: dict[str, np.ndarray] = {}
    if example["layer"] == "cross_entropy":
        n, classes, *pixels = arrays["input"]
        fixed["target"] = np.random.default_rng(example["seed"]).integers(0, classes, (n, *pixels))
        if example["weighted"]:
            fixed["weight"] = np.linspace(0.1, 2.0, classes)
    few = len(arrays["input"]) < 2 or 0 in arrays["input"]
    layout = LAYOUTS["contiguous" if few else example.get("layout", "contiguous")]
    fill, every = FILLS[example["fill"]], example.get("fill all", False)
    return Case(example["layer"], "random", arrays, arguments, fill, every, layout, fixed)
