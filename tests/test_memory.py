"""Where results lie: large ones of layers and of plans in huge pages, whatever the kernel makes of that."""

import re
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import jitconv
from jitconv import memory


def advised(tensor: torch.Tensor) -> bool:
    """Whether the kernel was told that the middle of a tensor may be in huge pages."""
    middle = tensor.data_ptr() + tensor.nbytes // 2
    for mapping in re.split(r"\n(?=[0-9a-f]+-[0-9a-f]+ )", Path("/proc/self/smaps").read_text()):
        first, last = (int(address, 16) for address in mapping.partition(" ")[0].split("-"))
        if first <= middle < last:
            return "hg" in mapping.partition("VmFlags:")[2].split()
    return False


@pytest.mark.skipif(sys.platform != "linux", reason="/proc and huge pages are Linux's")
@pytest.mark.parametrize("how", ["layer", "plan"])
def test_large_results_are_in_huge_pages(how: str) -> None:
    model, x = nn.Linear(2, 1024).eval(), torch.ones(memory.LARGE // 4096, 2)
    compute = jitconv.nn.convert(model) if how == "layer" else jitconv.plan(model, x)
    with torch.no_grad():
        large, small = compute(x), (jitconv.plan(model, x[:1]) if how == "plan" else compute)(x[:1])
        torch.testing.assert_close(large, model(x))
    assert large.nbytes == memory.LARGE
    assert advised(large)
    assert not advised(small)
