"""The study's runner, on a few rows: progress, an interruption, and going on from there."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

from benchmarks.study import TRAININGS

ROOT = Path(__file__).parent.parent


def study(tmp_path: Path) -> list[str]:
    return [
        sys.executable, "-m", "benchmarks.study", "--passes", "2", "--only", "relu and 64 and (vector or tiled)",
        "--results", str(tmp_path / "results"), "--page", str(tmp_path / "page.html"),
        "--folder", str(tmp_path / "study"),
    ]  # fmt: skip


def finished_but_measuring(folder: Path) -> None:
    """What stands for the parts of a study that take long, so that this one only measures."""
    results = folder / "results"
    results.mkdir(parents=True, exist_ok=True)
    for name in ("verify", *(f"train-{run}" for run in TRAININGS)):
        (results / f"{name}.json").write_text("{}")
    (results / "instructions.json").write_text("{}")


def test_it_goes_on_after_an_interruption(tmp_path: Path) -> None:
    # What pytest-xdist tells its workers would turn off the benchmarks of the study's pytest.
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    environment = inherited | {"PYTHONPATH": str(ROOT)}
    command = [*study(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert "verifying" in process.stderr.readline()
        process.send_signal(signal.SIGINT)
        _, output = process.communicate(timeout=120)
    assert process.returncode == 130, output
    assert "the same command goes on from here" in output
    finished_but_measuring(tmp_path / "study")
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
    # The page cannot be made of what stands for the other parts; the measuring is done by then.
    content = json.loads((tmp_path / "results" / "benchmarks.json").read_text())
    rows = {(each["extra_info"]["name"], each["extra_info"]["pass"]) for each in content["benchmarks"]}
    assert ("relu, 64, forward, vector", 0) in rows, done.stderr
    assert ("relu, 64, forward, jit-tiled", 1) in rows
    assert ("relu, 64, forward, vector", 1) not in rows  # a second pass is for what the answer rests on
    assert "pass 2 of 2: jitconv" in done.stderr
