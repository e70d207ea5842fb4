"""The examples do what they say, at sizes that take seconds."""

import runpy
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"


def example(name: str) -> dict[str, Any]:
    return runpy.run_path(str(EXAMPLES / name))


def test_training_learns() -> None:
    assert example("train.py")["main"](images=1920) > 0.6


def test_converting_changes_no_output(capsys: pytest.CaptureFixture[str]) -> None:
    assert example("convert.py")["main"]() < 1e-4
    assert "20 Conv2d" in capsys.readouterr().out


def test_a_variant_is_verified_and_timed(capsys: pytest.CaptureFixture[str]) -> None:
    assert example("variant.py")["main"]() == []
    assert "mine: " in capsys.readouterr().out


def test_a_wrong_variant_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    names = example("variant.py")
    monkeypatch.setitem(names["main"].__globals__, "relu", lambda x, out: out.fill(1))
    assert "images: forward" in names["main"]()


def test_a_loop_over_images_becomes_a_plan(capsys: pytest.CaptureFixture[str]) -> None:
    assert example("plan_loop.py")["main"](images=20) < 1e-5
    assert "conv2d + max_pool2d" in capsys.readouterr().out


def test_threads_of_a_server_share_a_plan() -> None:
    assert example("plan_server.py")["main"](images=100) == 1.0


def test_compiled_training_learns() -> None:
    assert example("compile_training.py")["main"](images=1920) > 0.6


@pytest.mark.skipif(
    "jitconv" not in {entry.name for entry in entry_points(group="torch_dynamo_backends")},
    reason="this installation is older than the backend: pip install -e . again",
)
def test_compiled_networks_train_in_two_processes() -> None:
    code = "from compile_ddp import main; print(main(steps=3))"
    result = subprocess.run([sys.executable, "-c", code], cwd=EXAMPLES, capture_output=True, text=True, timeout=300)
    assert result.stdout.splitlines()[-1] == "0.0", result.stderr  # torch 2.8 prints more before it


@pytest.mark.parametrize("name", ["compile_ddp", "compile_training", "plan_loop", "plan_server"])
def test_one_line_of_an_ordinary_script_is_ours(name: str) -> None:
    lines = (EXAMPLES / f"{name}.py").read_text(encoding="utf-8").splitlines()
    (line,) = [line for line in lines if "# the line: torch's is" in line]
    assert "jitconv.plan(" in line or "torch.compile(" in line
    others = " ".join(other for other in lines if other is not line)
    assert "jitconv.plan(" not in others
    assert "torch.compile(model" not in others


def test_every_example_is_run() -> None:
    assert sorted(path.name for path in EXAMPLES.iterdir() if path.suffix == ".py") == [
        "compile_ddp.py",
        "compile_training.py",
        "convert.py",
        "plan_loop.py",
        "plan_server.py",
        "train.py",
        "variant.py",
    ]
