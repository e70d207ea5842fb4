"""The suite's own mechanics: lanes, order, and that a wrong kernel gets no time."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import memory
from benchmarks.measure import threads
from benchmarks.rows import ENGINES, borrows, cost, layer_rows, table
from jitconv import variants
from jitconv.cases import Case

ROOT = Path(__file__).parent.parent


def suite(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", "benchmarks", "-q", "-p", "no:cacheprovider", *arguments]
    # What pytest-xdist tells its workers would turn off the benchmarks of this pytest.
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=inherited | environment)


def test_a_row_of_results(tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    done = suite("--row", "relu, 64, forward, vector", "--benchmark-json", str(file))
    assert done.returncode == 0, done.stdout
    content = json.loads(file.read_text())
    (row,) = content["benchmarks"]
    assert row["extra_info"] | {"work": "relu, 64", "variant": "vector", "threads": 1, "batch": 64} == row["extra_info"]
    assert 0 < row["stats"]["median"] < 1
    assert len(row["stats"]["data"]) <= 5
    assert row["extra_info"]["used_cores"] < 1.1
    assert row["extra_info"]["command"] == "pytest benchmarks/test_layers.py --row 'relu, 64, forward, vector'"
    assert content["machine_info"]["cpu"]
    assert content["variants"] == list(variants.names())
    assert "UNSERIALIZABLE" not in file.read_text()


def test_a_wrong_kernel_has_no_time(tmp_path: Path) -> None:
    plugin = tmp_path / "wrong_relu.py"
    plugin.write_text(
        "import jitconv\njitconv.register_variant('wrong', base='vector', relu=lambda x, out: out.fill(1))\n"
    )
    file = tmp_path / "results.json"
    rows = [argument for name in ("wrong", "vector") for argument in ("--row", f"relu, 64, forward, {name}")]
    found = suite("-p", "wrong_relu", *rows, "--benchmark-json", str(file), PYTHONPATH=str(tmp_path))
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


def test_what_is_borrowed_depends_on_shapes() -> None:
    for stride, other in ((1, ""), (2, "jit-tiled")):
        case = Case("conv2d", "conv", {"input": (1, 64, 14, 14), "weight": (64, 64, 3, 3)}, {"stride": stride})
        assert borrows("jit-winograd", "conv2d", case) == other
        assert borrows("jit-tiled", "conv2d", case) == ""


def test_names_are_a_rows_own_and_commands_select_it() -> None:
    for full in (False, True):
        rows = table(full)
        assert len({(row.name, row.threads) for row in rows}) == len(rows)
        assert {row.engine for row in rows} <= set(ENGINES)
        assert all("'" not in row.name for row in rows)
    chosen = [row for row in table(False) if row.threads == 1][::60]
    words = [word for row in chosen if row.engine == "jitconv" for word in ("--row", row.name)]
    listed = suite("--collect-only", *words).stdout
    assert sum("::" in line for line in listed.splitlines()) == len(words) // 2, listed


def test_peak_memory_is_that_of_a_known_allocation() -> None:
    if memory.added(lambda: None) is None:
        pytest.skip("this system does not tell")
    size = 64 << 20

    def allocate() -> None:
        np.ones(size // 8).sum()

    before = np.ones(2 * size // 8)  # an earlier, higher peak must not count
    del before
    added = memory.added(allocate)
    assert added is not None
    assert 0.9 * size < added < 1.2 * size


def test_another_engine_has_a_process_of_its_own(tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    done = suite("--engine", "jax", "--row", "forward, 1, forward, jax", "--benchmark-json", str(file))
    if "jax is not installed" in done.stdout:
        pytest.skip("jax is not installed")
    (row,) = json.loads(file.read_text())["benchmarks"]
    assert row["extra_info"]["used_cores"] < 1.1, "it ran on more than one core"


def test_threads_beyond_the_machine_are_refused() -> None:
    done = suite("--collect-only", "--threads", "10000")
    assert done.returncode == 4
    assert "--threads must be between 1 and" in done.stderr
