"""The machine code of jit-tiled's innermost loops: sums stay in registers, and nothing is called between tiles.

An array taken out of a NamedTuple inside a loop is counted there: a call, around which every register is saved.
"""

import platform
from collections.abc import Callable
from typing import Any

import pytest

from benchmarks.instructions import innermost, kernels, machine_code
from jitconv.variants.simd import DOT_COLUMNS, DOT_ROWS, FEATURES, MR, NR_VECTORS


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64") or "+fma" not in FEATURES, reason="reads x86-64")
@pytest.mark.parametrize(("driver", "args"), [pytest.param(*what, id=name) for name, *what in kernels()])
def test_innermost_loops_only_load_and_multiply(driver: Callable[..., Any], args: tuple[Any, ...]) -> None:
    # Of two as large the one with fewer loads: the other is for one image, whose weights come from further away.
    hottest = max(innermost(machine_code(driver, *args)), key=lambda loop: (loop.multiply_adds, -loop.loads_each))
    assert hottest.multiply_adds >= min(MR * NR_VECTORS, DOT_ROWS * DOT_COLUMNS)
    assert (hottest.stores, hottest.calls, hottest.calls_around) == (0, 0, 0)
    assert hottest.loads_each < 1
