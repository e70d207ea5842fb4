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
import json, sys, time, torch
from benchmarks.memory import added
from jitconv import SimpleConvNet, functional
torch.set_num_threads(1)
model = SimpleConvNet(sys.argv[1])
images, labels = torch.randn(64, 1, 28, 28), torch.arange(64) % 10
def step():
    functional.cross_entropy(model(images), labels, variant=sys.argv[1]).backward()
if sys.argv[2] == "memory":  # nothing is timed here
    print(json.dumps(added(step)))
else:
    start = time.perf_counter()
    step()
    print(json.dumps(time.perf_counter() - start))
"""
ROOT = Path(__file__).parent.parent


def rows(full: bool) -> list[Row]:
    row = {"group": "compiling", "layer": "network", "quantity": "first step", "threads": 1, "batch": 64}
    kernels = [name for name in variants.available("cpu") if name.startswith("jit") and name != "jit-winograd"]
    names = [*kernels, "vector", "torch"]  # the network has no 3×3, so jit-winograd is jit-tiled in it
    if not full:  # on one core jit-parallel compiles jit's loops, and jit-static less than jit-tiled
        names = [name for name in names if name not in ("jit-parallel", "jit-static", "vector")]
    return [Row(work="new process", variant=name, **row) for name in names]  # type: ignore[arg-type]


def test_first_step(benchmark: Any, row: Row, tmp_path: Path) -> None:
    """The benchmark's time is that with a warm cache."""

    def run(what: str) -> float | None:
        environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
        command = [sys.executable, "-c", FIRST_STEP, row.variant, what]
        done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=True)
        return json.loads(done.stdout)

    cold = run("time")
    warm = run("time") if row.variant.startswith("jit") else cold  # the others compile nothing
    memory = run("memory")
    benchmark.group = row.group
    benchmark.extra_info.update(row.info(), cold_seconds=cold, warm_seconds=warm)
    benchmark.extra_info["peak_mib"] = None if memory is None else memory / 2**20
    benchmark.pedantic(lambda: None, rounds=1)
