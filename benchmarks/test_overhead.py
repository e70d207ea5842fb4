"""What a call costs before it computes anything: every layer on the smallest input, forward where gradients are wanted.

For comparison: a torch.autograd.Function in Python that computes nothing costs twice what all of torch's relu does.
"""

from typing import Any

import numpy as np

from benchmarks.measure import measure_layer
from benchmarks.rows import Row, over_variants
from jitconv.cases import Case

CASES = (
    Case("conv2d", "conv 1→2 3×3", {"input": (1, 1, 6, 6), "weight": (2, 1, 3, 3), "bias": (2,)}),
    Case("max_pool2d", "pool 2×2", {"input": (1, 1, 6, 6)}, {"kernel_size": 2}),
    Case("flatten", "flatten", {"input": (1, 1, 6, 6)}, {"start_dim": 1}),
    Case("linear", "fc 4→3", {"input": (2, 4), "weight": (3, 4), "bias": (3,)}),
    Case("relu", "relu", {"input": (2, 4)}),
    Case("softmax", "softmax", {"input": (2, 4)}, {"dim": 1}),
    Case("log_softmax", "log_softmax", {"input": (2, 4)}, {"dim": 1}),
    Case("cross_entropy", "loss", {"input": (2, 4)}, fixed={"target": np.array([1, 3])}),
)


def rows(full: bool) -> list[Row]:
    return [
        row
        for case in CASES
        for row in over_variants(
            Row(
                group="overhead", work=f"{case.name}, tiny", layer=case.layer, quantity="call", variant="", threads=1,
                batch=case.arrays["input"][0], case=case,
            ),
            skip=("interpreted", "interpreted-numpy"),
        )
    ]  # fmt: skip


def test_overhead(benchmark: Any, row: Row, again: int) -> None:
    measure_layer(benchmark, row)
