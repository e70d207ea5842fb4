"""No kernel reads or writes outside its arrays: each row of the case table beside pages that nobody may touch.

`pytest tests/test_guarded.py --whole` runs all rows of the variants that compile for each, and more threads.
"""

import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
from conftest import COMPILED

from tests.guarded import PLANS

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="mprotect is called as Linux has it")
NATIVE = tuple(name for name in COMPILED if name.startswith("jit"))
STOP = 5  # crashes after which the rest is not run


def crashes(*arguments: str) -> list[str]:
    """Run the rows in child processes; return those in which one ended, or whose result was wrong."""
    found, first = [], 0
    while len(found) < STOP:
        command = [sys.executable, "-m", "tests.guarded", *arguments, "--from", str(first)]
        passive = {**os.environ, "OMP_WAIT_POLICY": "passive"}  # there may be fewer cores than threads
        done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[1], env=passive)
        lines = done.stdout.splitlines()
        found += [f"{row}: {line}" for row, line in pairwise(lines) if line.startswith("wrong\t")]
        if done.returncode == 0:
            assert lines[-1] == "done"
            return found
        assert lines, done.stderr
        number, _, name = lines[-1].partition("\t")
        found.append(f"{name}: ended with {done.returncode}\n{done.stderr}")
        first = int(number) + 1
    return found


@pytest.mark.parametrize("variant", [*NATIVE, PLANS])
def test_nothing_is_touched_outside_the_arrays(variant: str, request: pytest.FixtureRequest) -> None:
    options = ["--whole"] if request.config.getoption("--whole") else []
    assert not crashes(variant, *options)


@pytest.mark.parametrize("how", ["read", "write", "input"])
def test_a_stray_access_is_found_and_its_row_named(how: str) -> None:
    found = crashes("jit", "--fail", how)
    assert found
    assert all("relu" in row and "ended with -11" in row for row in found)
