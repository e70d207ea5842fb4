"""One convolution as its batch, channels, kernel and image grow, one at a time, forward and backward."""

from typing import Any

from benchmarks.measure import measure_layer
from benchmarks.rows import Row, layer_rows, powers
from jitconv.cases import Case

BASE = {"batch": 16, "channels": 8, "kernel": 5, "image": 28}
AXES = {
    "batch": powers(4, 1, 1024),
    "channels": powers(2, 1, 64),
    "kernel": [1, 3, 5, 7, 9],
    "image": [14, 28, 56, 112],
}


def case(batch: int, channels: int, kernel: int, image: int) -> Case:
    arrays = {"input": (batch, channels, image, image), "weight": (16, channels, kernel, kernel), "bias": (16,)}
    return Case("conv2d", f"conv {channels}→16 {kernel}×{kernel} at {image}×{image}, {batch}", arrays)


def rows(full: bool) -> list[Row]:
    """The base, where the axes meet, is a row of the batch's axis only."""
    slow = ("interpreted", "interpreted-numpy")
    skip = slow if full else (*slow, "jit-parallel", "jit-static")
    return [
        row
        for axis, sizes in AXES.items()
        for size in sizes
        if axis == "batch" or size != BASE[axis]
        for row in layer_rows("scaling", case(**{**BASE, axis: size}), skip, lanes=(1,), axis=axis, size=size)
        if full or (row.quantity == "forward" and size <= 112)
    ]


def test_scaling(benchmark: Any, row: Row) -> None:
    measure_layer(benchmark, row)
