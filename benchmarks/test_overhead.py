"""What a call costs before it computes anything: every layer on the smallest input, forward where gradients are wanted.

Beside them a torch.autograd.Function that computes nothing: what a layer in Python takes when its kernel, its checks
and the way to it take no time.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import torch

from benchmarks.measure import measure, measure_layer
from benchmarks.rows import Row, over_variants
from jitconv import variants
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


NOTHING = "a Function that computes nothing"


class Nothing(torch.autograd.Function):
    """Give an empty result of a shape and keep the input, as the cheapest layer would."""

    @staticmethod
    def forward(ctx: Any, shape: tuple[int, ...], *tensors: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(tensors[0])
        return tensors[0].new_empty(shape)


def rows(full: bool) -> list[Row]:
    found = [row for case in CASES for row in rows_of(case)]
    return [row for row in found if full or row.variant in (NOTHING, variants.BEST["cpu"], "torch")]


def rows_of(case: Case) -> Iterator[Row]:
    row = Row(
        group="overhead", work=f"{case.name}, tiny", layer=case.layer, quantity="call", variant=NOTHING, threads=1,
        batch=case.arrays["input"][0], case=case,
    )  # fmt: skip
    yield row
    yield from over_variants(row, skip=("interpreted", "interpreted-numpy"))


def test_overhead(benchmark: Any, row: Row) -> None:
    assert row.case is not None
    if row.variant == NOTHING:
        leaves = [torch.randn(shape).requires_grad_() for shape in row.case.arrays.values()]
        measure(benchmark, row, partial(Nothing.apply, (2, 4), *leaves))
    else:
        measure_layer(benchmark, row)
