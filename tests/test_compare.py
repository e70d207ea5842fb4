"""Two runs beside each other: what changed is found, what did not raises no alarm."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from test_cli import MACHINE

from jitconv import cli
from jitconv.report.compare import changes
from jitconv.report.read import read

ROWS, PASSES = 60, 5


def write(folder: Path, seed: int, slow: int | None = None, factor: float = 1.1, machine: Any = MACHINE) -> Path:
    """A run whose passes differ by 1 % and whose rounds by 1 %, with one row slower than in the other runs."""
    chance = np.random.default_rng(seed)
    rows = []
    for number in range(ROWS):
        for each in range(PASSES):
            time = 1e-3 * (factor if number == slow else 1.0) * np.exp(chance.normal(0, 0.01))
            info = {
                "group": "layers",
                "work": f"work {number}",
                "layer": "relu",
                "quantity": "forward",
                "variant": "jit",
                "threads": 1,
                "device": "cpu",
                "batch": 1,
                "axis": "",
                "size": 0,
                "pass": each,
                "name": f"work {number}",
            }
            data = list(time * np.exp(chance.normal(0, 0.01, 5)))
            rows.append({"extra_info": info, "stats": {"data": data, "iterations": 10}})
    folder.mkdir(exist_ok=True)
    file = folder / f"run-{seed}.json"
    file.write_text(json.dumps({"machine_info": machine, "benchmarks": rows}))
    return file


def test_a_hundred_pairs_of_the_same_raise_at_most_five_alarms(tmp_path: Path) -> None:
    runs = [read([write(tmp_path, seed)]) for seed in range(15)]
    pairs = [(a, b) for a in range(15) for b in range(a)][:100]
    alarms = sum(bool(changes(runs[a], runs[b]).regressions(0.0)) for a, b in pairs)
    assert alarms <= 5


def test_a_slowdown_of_one_row_is_found(tmp_path: Path) -> None:
    before, after = read([write(tmp_path, 100)]), read([write(tmp_path, 101, slow=7)])
    assert [each.new.work for each in changes(before, after).regressions(0.02)] == ["work 7"]
    (worst, *others) = changes(before, after).changes
    assert (worst.new.work, worst.verdict) == ("work 7", "slower")
    assert worst.factor.low < 1.1 < worst.factor.high
    assert not any(each.factor.middle > 1.05 for each in others)


def call(*arguments: str) -> Any:
    return CliRunner().invoke(cli.main, ["compare", *arguments])


def test_exit_codes_and_markdown(tmp_path: Path) -> None:
    before, after = str(write(tmp_path, 1)), str(write(tmp_path, 2, slow=3, factor=1.3))
    result = call(before, after, "--fail-above", "5%")
    assert result.exit_code == cli.SLOWER
    assert "| work 3, forward, jit, one core | 1.0" in result.stdout
    assert "| slower |" in result.stdout
    assert "Slower by more than 5%, all but certainly: 1." in result.stdout
    assert call(before, after).exit_code == 0
    assert call(before, after, "--fail-above", "60%").exit_code == 0
    assert call(after, before, "--fail-above", "5%").exit_code == 0, "faster is no regression"
    assert call(before, after, "--fail-above", "much").exit_code == 2


def test_verdicts_are_withheld_between_machines(tmp_path: Path) -> None:
    other = {**MACHINE, "cpu": "another"}
    before, after = str(write(tmp_path, 1)), str(write(tmp_path, 2, slow=3, factor=1.3, machine=other))
    result = call(before, after, "--fail-above", "5%")
    assert result.exit_code == 0
    assert f"- cpu: {MACHINE['cpu']} and another" in result.stdout
    assert "slower" not in result.stdout
    assert call(before, after, "--fail-above", "5%", "--force").exit_code == cli.SLOWER


def test_a_package_that_one_run_lacks_is_no_difference_and_another_version_is(tmp_path: Path) -> None:
    was, now = (MACHINE | {"versions": {"torch": "2.13.0"} | more} for more in ({"numba-cuda": "0.30.4"}, {}))
    newer = MACHINE | {"versions": {"torch": "2.15.0"}}
    old, new, newest = (
        read([write(tmp_path, 200 + seed, machine=each)]) for seed, each in enumerate((was, now, newer))
    )
    assert not changes(old, new).differences
    assert changes(new, newest).differences == ["torch: 2.13.0 and 2.15.0"]


def test_rows_of_one_run_only_are_named(tmp_path: Path) -> None:
    content = json.loads(write(tmp_path, 1).read_text())
    content["benchmarks"] = [each for each in content["benchmarks"] if each["extra_info"]["work"] != "work 5"]
    less = tmp_path / "less.json"
    less.write_text(json.dumps(content))
    assert "Only in the old run: work 5." in call(str(tmp_path / "run-1.json"), str(less)).stdout


@pytest.mark.parametrize("limit", ["5%", "0.05"])
def test_a_share_may_be_written_both_ways(tmp_path: Path, limit: str) -> None:
    before, after = str(write(tmp_path, 1)), str(write(tmp_path, 2, slow=3, factor=1.3))
    assert call(before, after, "--fail-above", limit).exit_code == cli.SLOWER
