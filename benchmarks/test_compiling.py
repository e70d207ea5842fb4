"""The first training step in a new process, with nothing compiled and with a warm cache, and the memory it takes."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.rows import Row
from jitconv import variants

FIRST_STEP = """
import json, resource, sys, time, torch
from jitconv import SimpleConvNet, functional
torch.set_num_threads(1)
model = SimpleConvNet(sys.argv[1])
images, labels = torch.randn(64, 1, 28, 28), torch.arange(64) % 10
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
start = time.perf_counter()
functional.cross_entropy(model(images), labels, variant=sys.argv[1]).backward()
seconds = time.perf_counter() - start
print(json.dumps([seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before]))
"""


def rows(full: bool) -> list[Row]:
    row = {"group": "compiling", "layer": "network", "quantity": "first step", "threads": 1, "batch": 64}
    names = [name for name in variants.available("cpu") if name.startswith("jit")] + ["vector", "torch"]
    return [Row(work="new process", variant=name, **row) for name in names]  # type: ignore[arg-type]


def test_first_step(benchmark: Any, row: Row, again: int, tmp_path: Path) -> None:
    """The benchmark's time is that with a warm cache."""

    def first_step() -> tuple[float, float]:
        environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
        command = [sys.executable, "-c", FIRST_STEP, row.variant]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        seconds, kilobytes = json.loads(done.stdout)
        return seconds, kilobytes / 1024

    cold, _ = first_step()
    warm, megabytes = first_step()
    benchmark.group = row.group
    benchmark.extra_info.update(row.info(), cold_seconds=cold, warm_seconds=warm, peak_mib=megabytes)
    benchmark.pedantic(lambda: None, rounds=1)
