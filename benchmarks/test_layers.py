"""Every layer of SimpleConvNet, forward and backward, at three batch sizes."""

from typing import Any

import numpy as np

from benchmarks.measure import measure_layer
from benchmarks.rows import LANES, Row, layer_rows, twice
from jitconv.cases import Case

BATCHES = (1, 64, 1024)


def cases(batch: int) -> list[Case]:
    """Return the network's layers, on batches of images: (N, 1, 28, 28)."""
    N = batch
    labels = np.arange(N) % 10
    return [
        Case("conv2d", f"conv 1→20 5×5, {N}", {"input": (N, 1, 28, 28), "weight": (20, 1, 5, 5), "bias": (20,)}),
        Case("max_pool2d", f"pool 2×2, {N}", {"input": (N, 20, 24, 24)}, {"kernel_size": 2}),
        Case("flatten", f"flatten, {N}", {"input": (N, 20, 12, 12)}, {"start_dim": 1}),
        Case("linear", f"fc1 2880→500, {N}", {"input": (N, 2880), "weight": (500, 2880), "bias": (500,)}),
        Case("relu", f"relu, {N}", {"input": (N, 500)}),
        Case("linear", f"fc2 500→10, {N}", {"input": (N, 500), "weight": (10, 500), "bias": (10,)}),
        Case("softmax", f"softmax, {N}", {"input": (N, 10)}, {"dim": 1}),
        Case("cross_entropy", f"loss, {N}", {"input": (N, 10)}, fixed={"target": labels}),
    ]


def rows(full: bool) -> list[Row]:
    first = cases(64)[0]  # the digits need no gradient
    found = layer_rows("layers", first, ("interpreted",), quantities=("weight gradient",))
    for N in BATCHES:
        plain = () if full or N < 1024 else ("jit", "jit-parallel", "jit-static", "vector")  # up to a second a call
        lanes = LANES if full or N > 1 else (1,)  # one image is too little for two cores
        found += [row for case in cases(N) for row in layer_rows("layers", case, ("interpreted", *plain), lanes)]
    return twice(found)


def test_layer(benchmark: Any, row: Row) -> None:
    measure_layer(benchmark, row)
