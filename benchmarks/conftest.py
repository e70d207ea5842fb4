"""How rows become tests and JSON: one process measures one engine on one number of cores, which is set here first.

`pytest benchmarks` measures jitconv and torch on one core. --engine names another, --threads another number of cores,
--row a single row; the study (study.py) starts such a process for each of them, several times over.
"""

import json
import os
import random
import signal
from pathlib import Path
from typing import Any

import pytest

from jitconv import machine

SUITES = ("quick", "full")
POOLS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS", "NPROC")

_gaps: list[dict[str, Any]] = []


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("jitconv", "what is measured")
    group.addoption("--suite", choices=SUITES, default="quick", help="full has more rows")
    group.addoption("--engine", default="jitconv", help="jitconv (all variants, and torch) or one other engine")
    group.addoption("--threads", default="1", help="cores of this process, or all; one core is the primary lane")
    group.addoption("--row", action="append", default=[], help="the name of a row to measure; again for more")
    group.addoption("--pass-number", type=int, default=0, help="which pass over the rows this is: another order")
    group.addoption("--done", action="append", default=[], help="results whose rows are left out")


def pytest_configure(config: pytest.Config) -> None:
    """Give the process its cores before anything is compiled or any thread pool starts."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a process in the background is born deaf to it
    if os.environ.get("NUMBA_ENABLE_CUDASIM", "0") not in ("", "0"):
        raise pytest.UsageError("NUMBA_ENABLE_CUDASIM must not be set: a simulated GPU has no speed to measure")
    cores = machine.cores()
    os.environ.setdefault("BENCHMARK_CORES", str(cores))  # what rows.py calls all cores
    given = config.getoption("--threads")
    threads = cores if given == "all" else int(given)
    if not 1 <= threads <= cores:
        raise pytest.UsageError(f"--threads must be between 1 and {cores}, the cores of this machine, got {given}")
    timed = not config.getoption("benchmark_disable")  # else the study has several such processes side by side
    if timed and threads < cores and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-threads:])
    os.environ.update(dict.fromkeys(POOLS, str(threads)))

    import torch

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    config.stash[LANE] = threads


LANE = pytest.StashKey[int]()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "row" in metafunc.fixturenames:
        config = metafunc.config
        wanted, done = set(config.getoption("--row")), _names_in(config.getoption("--done"))
        rows = [
            row
            for row in metafunc.module.rows(config.getoption("--suite") == "full" or bool(wanted))
            if row.engine == config.getoption("--engine")
            and (row.threads == config.stash[LANE] or row.device != "cpu")
            and (not wanted or row.name in wanted)
            and row.name not in done
            and (wanted or row.again_in(config.getoption("--pass-number"), config.getoption("--suite") == "full"))
        ]
        metafunc.parametrize("row", rows, ids=[row.name for row in rows])


def _names_in(files: list[str]) -> set[str]:
    contents = [json.loads(Path(file).read_text(encoding="utf-8")) for file in files]
    measured = {each["extra_info"]["name"] for content in contents for each in content["benchmarks"]}
    return measured | {gap["row"] for content in contents for gap in content["gaps"]}


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Shuffle the works, and the variants within each: drift hits all alike, and what is compared is timed together."""
    chance = random.Random(config.getoption("--pass-number"))
    groups: dict[Any, list[pytest.Item]] = {}
    for item in items:
        row = item.callspec.params["row"]  # type: ignore[attr-defined]
        if not hasattr(row, "group"):  # pytest's own mark for a test file without rows for this process
            continue
        groups.setdefault((row.group, row.work, row.batch), []).append(item)
    order = sorted(groups, key=lambda key: chance.random())
    items[:] = [item for key in order for item in chance.sample(groups[key], len(groups[key]))]


def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> None:
    if call.excinfo is not None and not isinstance(call.excinfo.value, KeyboardInterrupt):
        row = item.callspec.params["row"]  # type: ignore[attr-defined]
        why = str(call.excinfo.value).partition("\n")[0]
        outcome = "skipped" if isinstance(call.excinfo.value, pytest.skip.Exception) else "failed"
        _gaps.append({"row": row.name, "threads": row.threads, "outcome": outcome, "why": why})


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    machine_info.clear()
    machine_info.update(machine.describe())


def pytest_benchmark_update_json(config: pytest.Config, benchmarks: Any, output_json: dict[str, Any]) -> None:
    """Keep what the report reads: a few samples to four digits, and every row that has no time, with the reason."""
    from jitconv import variants

    output_json["gaps"] = _gaps
    output_json["suite"] = config.getoption("--suite")
    output_json["variants"] = list(variants.names())
    kept = ("min", "median", "rounds", "iterations", "data")
    for each in output_json["benchmarks"]:
        each["extra_info"]["pass"] = config.getoption("--pass-number")
        each["stats"] = {name: each["stats"][name] for name in kept}
        each["stats"]["data"] = [float(f"{seconds:.4g}") for seconds in each["stats"]["data"]]
        each.pop("params", None)
        each.pop("options", None)
        each["param"] = None
