"""What `make gpu` runs, as far as it can without a GPU: with the CPU in the GPU's place, and with few packages."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from test_graph import on_the_cpu

from benchmarks import gpu, train_on_gpu
from benchmarks.rows import Row
from jitconv import variants

with pytest.MonkeyPatch.context() as patch:
    patch.setattr(variants, "missing", lambda device: None)
    from benchmarks import test_gpu

ROOT = Path(__file__).parent.parent
ABSENT = (
    "altair",
    "click",
    "hypothesis",
    "jax",
    "jinja2",
    "onnx",
    "onnxruntime",
    "openvino",
    "pandas",
    "psutil",
    "rich",
)
ABSENT += ("scipy", "threadpoolctl", "torchvision", "vl_convert")


class Event:
    def __init__(self, enable_timing: bool) -> None:
        pass

    def record(self) -> None:
        pass

    def elapsed_time(self, other: "Event") -> float:
        return 2.0


@pytest.fixture
def cpu_as_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("numba_cuda")
    monkeypatch.setattr(gpu, "DEVICE", "cpu")
    monkeypatch.setattr(gpu, "FLUSH", 1)
    monkeypatch.setattr(gpu, "CapturedStep", on_the_cpu)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(variants, "missing", lambda device: None)


@pytest.fixture
def benchmark(benchmark: Any) -> Any:
    """It measures in parallel tests too, where pytest-benchmark turns itself off: no test looks at how long it took."""
    benchmark.disabled = False
    return benchmark


def rows(*wanted: str) -> list[Row]:
    """The rows of torch whose names contain one of these."""
    found = [row for row in test_gpu.rows(full=True) if row.variant == "torch" and any(w in str(row) for w in wanted)]
    assert len(found) >= len(wanted)
    return found


def test_the_table_of_rows(cpu_as_gpu: None) -> None:
    found = {str(row) for row in test_gpu.rows(full=True)}
    for batch in (64, 1024):
        for name in ("cuda", "cuda-tiled", "vector", "torch"):
            assert {f"training step, {batch}, {step}, {name}" for step in ("step", "step, captured")} <= found
            assert f"conv 1→20 5×5, {batch}, backward, {name}" in found
    assert "epoch of 60,000, epoch, captured, cuda-tiled" in found
    assert "product 4096³, forward, cuda-tiled" in found


@pytest.mark.parametrize(
    ("wanted", "measure"),
    [
        ("relu, 64", gpu.measure_layer),
        ("training step, 64", gpu.measure_training),
        ("copy", gpu.measure_copy),
    ],
)
def test_three_times(
    wanted: str, measure: Callable[[Any, Row], None], benchmark: Any, cpu_as_gpu: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(test_gpu, "COPIED", 1 << 10)
    row = rows(wanted)[-1]
    measure(benchmark, row)
    assert benchmark.extra_info["kernel_seconds"] == [0.002] * gpu.ROUNDS
    assert wanted == "copy" or min(benchmark.extra_info["end_to_end_seconds"]) > 0
    assert benchmark.stats.stats.median > 0


def test_an_epoch(benchmark: Any, cpu_as_gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(test_gpu, "EPOCH", 150)
    for row in rows("epoch of 150, epoch, captured"):
        gpu.measure_training(benchmark, row)
    assert benchmark.stats.stats.median > 0


def test_a_wrong_step_has_no_time(cpu_as_gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    step = rows("training step, 64")[0]
    monkeypatch.setattr(gpu.functional, "cross_entropy", lambda logits, labels, variant: 0 * logits.sum() + 1)
    with pytest.raises(pytest.fail.Exception, match="wrong: the first loss is"):
        gpu.training_step(step, lambda *batch: batch, torch.zeros(2, 1, 28, 28), torch.arange(2))


def test_trainings_are_results_of_the_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train_on_gpu, "RUNS", {"torch": {"variant": "torch"}})
    train_on_gpu.main(tmp_path / "new", "cpu", epochs=1)
    assert json.loads((tmp_path / "new" / "train-torch.json").read_text())["kind"] == "jitconv-train"


def test_few_packages_suffice(tmp_path: Path) -> None:
    """Everything that `make gpu` starts imports and is collected where only torch, numba-cuda and pytest are."""
    (tmp_path / "sitecustomize.py").write_text(
        "from importlib.machinery import PathFinder\n"
        "find = PathFinder.find_spec\n"
        f"absent = {ABSENT}\n"
        "PathFinder.find_spec = classmethod(lambda _, name, *others: None if name in absent else find(name, *others))\n"
    )
    (tmp_path / "gpu_here.py").write_text("from jitconv import variants\nvariants.missing = lambda device: None\n")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    pytest_here = [sys.executable, "-m", "pytest", "-q", "--collect-only", "-p", "gpu_here"]
    pytest_here += ["-p", "no:cacheprovider", "-p", "no:hypothesispytest"]
    for command in (
        [*pytest_here, "tests/cuda"],
        [*pytest_here, "benchmarks/test_gpu.py", "--suite", "full"],
        [sys.executable, "-c", "from benchmarks import train_on_gpu; from jitconv import machine; machine.describe()"],
    ):
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
