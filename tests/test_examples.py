"""The examples do what they say, at sizes that take seconds."""

import runpy
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


def test_every_example_is_run() -> None:
    assert sorted(path.name for path in EXAMPLES.iterdir() if path.suffix == ".py") == [
        "convert.py",
        "train.py",
        "variant.py",
    ]
