"""The suite's own mechanics: lanes, order, and that a wrong kernel gets no time."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch

from benchmarks.measure import threads
from benchmarks.rows import borrows, cost, layer_rows
from jitconv import variants
from jitconv.cases import Case

ROOT = Path(__file__).parent.parent


def suite(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", "benchmarks", "-q", "-p", "no:cacheprovider", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, **environment})


def test_a_row_of_results(tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    done = suite("-k", "relu and 64 and vector and forward and 1t", "--benchmark-json", str(file))
    assert done.returncode == 0, done.stdout
    content = json.loads(file.read_text())
    (row,) = content["benchmarks"]
    assert row["extra_info"] | {"work": "relu, 64", "variant": "vector", "threads": 1, "batch": 64} == row["extra_info"]
    assert 0 < row["stats"]["median"] < 1
    assert len(row["stats"]["data"]) <= 7
    assert content["machine_info"]["cpu"]
    assert "UNSERIALIZABLE" not in file.read_text()


def test_a_wrong_kernel_has_no_time(tmp_path: Path) -> None:
    plugin = tmp_path / "wrong_relu.py"
    plugin.write_text(
        "import jitconv\njitconv.register_variant('wrong', base='vector', relu=lambda x, out: out.fill(1))\n"
    )
    file = tmp_path / "results.json"
    rows = "relu and 64 and forward and 1t and (wrong or vector)"
    found = suite("-p", "wrong_relu", "-k", rows, "--benchmark-json", str(file), PYTHONPATH=str(tmp_path))
    assert found.returncode == 1
    content = json.loads(file.read_text())
    assert [row["extra_info"]["variant"] for row in content["benchmarks"]] == ["vector"]
    assert "times the allowed error" in content["gaps"][0]["why"]


def test_the_order_is_random_but_the_same_every_time() -> None:
    outputs = [suite("--collect-only", "-k", "relu").stdout for _ in range(2)]
    first, second = ([line for line in output.splitlines() if "::" in line] for output in outputs)
    assert first == second
    assert first != sorted(first)


def test_the_cuda_simulator_is_refused() -> None:
    done = suite("--collect-only", NUMBA_ENABLE_CUDASIM="1")
    assert done.returncode == 4
    assert "a simulated GPU has no speed" in done.stderr


def test_lanes_are_set_and_put_back() -> None:
    before = torch.get_num_threads()
    with threads(1):
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == before


def test_costs() -> None:
    case = Case("conv2d", "conv", {"input": (2, 3, 8, 8), "weight": (4, 3, 3, 3), "bias": (4,)})
    flops, moved = cost(case, "forward")
    assert flops == 2 * (2 * 4 * 6 * 6) * (3 * 3 * 3)
    assert moved == 4 * (2 * 3 * 64 + 4 * 27 + 4 + 2 * 4 * 36)
    assert cost(case, "backward")[0] == 2 * flops


def test_a_registered_variant_is_measured_and_what_it_borrows_is_known() -> None:
    variants.register_variant("mine", base="jit", relu=lambda x, out: np.maximum(x, 0, out=out))
    case = Case("linear", "fc", {"input": (4, 3), "weight": (2, 3), "bias": (2,)})
    assert "mine" in {row.variant for row in layer_rows("layers", case)}
    assert borrows("mine", "linear") == "jit"
    assert borrows("mine", "relu") == ""
