"""The CUDA kernels run by Numba's simulator, in tiny blocks, against torch: tests/test_cuda.py starts this file."""

import math
from dataclasses import replace

import pytest

from jitconv import variants
from jitconv.cases import CASES, Case, contiguous
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
