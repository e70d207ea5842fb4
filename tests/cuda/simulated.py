"""The CUDA kernels run by Numba's simulator, in tiny blocks, against torch: tests/test_cuda.py starts this file."""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
from fused import FUSED, Fused, same

from jitconv import variants
from jitconv.cases import CASES, Case, contiguous
from jitconv.variants.cuda import conv2d, fixed, grid, softmax, sums
from jitconv.variants.cuda.grid import MOST_PLACES, divide, unfold
from jitconv.variants.cuda.sizes import SIMULATED
from jitconv.verify import check

assert SIMULATED, "run it with NUMBA_ENABLE_CUDASIM=1"

NAMES = ("cuda", "cuda-tiled")
VARIANTS = [variants.add(replace(variants.get(name), name=f"{name} simulated", device="cpu")).name for name in NAMES]


def bearable(case: Case) -> bool:
    """Small, and not one of the layouts that no kernel sees: what arrives is contiguous."""
    return case.layout is contiguous and max((math.prod(shape) for shape in case.arrays.values()), default=0) < 700


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("case", [case for case in CASES if bearable(case)], ids=str)
def test_values_and_gradients_equal_torch(case: Case, variant: str) -> None:
    wrong = [result for result in check(case, variant) if not result.ok]
    assert not wrong


@pytest.mark.parametrize("fused", FUSED, ids=str)
def test_one_pass_gives_what_two_give(fused: Fused) -> None:
    ours, theirs = fused.results("cuda-tiled simulated")
    assert all(map(same, ours, theirs))


@pytest.mark.parametrize("layer", ["conv2d", "max_pool2d", "softmax", "log_softmax", "cross_entropy"])
def test_what_32_bits_cannot_count_is_left_to_cuda(layer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (conv2d, fixed, softmax, sums):
        monkeypatch.setattr(module, "MOST_PLACES", 1)
    left = []
    for op in variants.OPS:
        monkeypatch.setitem(grid.VARIANT.ops, op, partial(_noted, left, grid.VARIANT.ops[op]))  # type: ignore[arg-type]
    case = next(case for case in CASES if case.layer == layer)
    assert all(result.ok for result in check(case, "cuda-tiled simulated"))
    assert len(left) == {"conv2d": 4}.get(layer, 2)


@pytest.mark.parametrize("name", ["groups", "1×1", "everything at once"])
def test_more_groups_than_a_grid_has_rows_of_blocks(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conv2d, "MOST_ROWS_OF_BLOCKS", 0)
    case = next(case for case in CASES if str(case) == f"conv2d: {name}")
    assert all(result.ok for result in check(case, "cuda-tiled simulated"))


def _noted(left: list[Any], op: Callable[..., None], *args: Any) -> None:
    left.append(op)
    op(*args)


def test_32_bits_count_up_to_the_most() -> None:
    last = MOST_PLACES + 1023  # in the last tile
    assert [divide(last, each) for each in (1, 3, 2**31)] == [divmod(last, each) for each in (1, 3, 2**31)]
    assert unfold(last, (1000, 77)) == (last // 77_000, last // 77 % 1000, last % 77)
