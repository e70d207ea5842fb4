"""How rows become tests and JSON: their order, what the JSON says of the machine, and what it leaves out."""

import random
from typing import Any

import pytest
import torch

from jitconv import machine

PASSES = {"quick": 1, "full": 3}
SEED = 0

_gaps: list[dict[str, str]] = []


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--suite",
        choices=tuple(PASSES),
        default="quick",
        help="quick: each row once, in minutes. full: more rows, three times each.",
    )


def pytest_configure(config: pytest.Config) -> None:
    from numba.core import config as numba_config

    if numba_config.ENABLE_CUDASIM:  # type: ignore[attr-defined]
        raise pytest.UsageError("NUMBA_ENABLE_CUDASIM must not be set: a simulated GPU has no speed to measure")
    torch.manual_seed(SEED)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "row" in metafunc.fixturenames:
        suite = metafunc.config.getoption("--suite")
        rows = [(row, again) for again in range(PASSES[suite]) for row in metafunc.module.rows(suite == "full")]
        metafunc.parametrize(("row", "again"), rows, ids=[f"{row} {again}" for row, again in rows])


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Shuffle the works, and the variants within each: drift hits all alike, and what is compared is timed together."""
    chance = random.Random(SEED)
    groups: dict[Any, list[pytest.Item]] = {}
    for item in items:
        row, again = (item.callspec.params[name] for name in ("row", "again"))  # type: ignore[attr-defined]
        groups.setdefault((again, row.group, row.work, row.batch), []).append(item)
    order = sorted(groups, key=lambda key: (key[0], chance.random()))
    items[:] = [item for key in order for item in chance.sample(groups[key], len(groups[key]))]


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.failed or report.skipped:
        crash = getattr(report.longrepr, "reprcrash", None)
        why = crash.message.partition("\n")[0] if crash else str(report.longrepr[2])  # type: ignore[index]
        _gaps.append({"row": report.nodeid.partition("[")[2].rstrip("]"), "outcome": report.outcome, "why": why})


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    machine_info.clear()
    machine_info.update(machine.describe())


def pytest_benchmark_update_json(config: pytest.Config, benchmarks: Any, output_json: dict[str, Any]) -> None:
    """Keep what the report reads: a few samples to four digits, and every row that has no time, with the reason."""
    output_json["gaps"] = _gaps
    output_json["suite"] = config.getoption("--suite")
    kept = ("min", "median", "rounds", "iterations", "data")
    for each in output_json["benchmarks"]:
        each["stats"] = {name: each["stats"][name] for name in kept}
        each["stats"]["data"] = [float(f"{seconds:.4g}") for seconds in each["stats"]["data"]]
        each.pop("params", None)
        each.pop("options", None)
        each["param"] = None


@pytest.fixture
def again() -> int:
    """Which pass over the rows this is."""
    return 0
