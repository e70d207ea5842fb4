"""A short run of the fuzzer, whose long runs are `python -m tests.fuzz --minutes N --seed S`; and that it finds."""

import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import jitconv
from tests.fuzz.__main__ import command, main, smallest, wrong

FOUND = [  # wrong once
    {  # a kernel read torch's result after it had been freed
        "plan": [["add", 3], ["pool", 32], ["add", 3], ["depthwise", 3], ["depthwise", 3], ["add", 20], ["conv", 20]],
        "shape": [1, 16, 1, 1], "variant": "jit-tiled", "dtype": "float32", "threads": 1, "seed": 0,
    },
]  # fmt: skip


@pytest.mark.parametrize("example", FOUND)
def test_what_was_found_is_mended(example: dict[str, Any]) -> None:
    assert wrong(example) == []


def test_a_short_run_finds_nothing() -> None:
    run = [sys.executable, "-m", "tests.fuzz", "--minutes", "0.5", "--seed", "7"]
    done = subprocess.run(run, capture_output=True, text=True, cwd=Path(__file__).parent.parent)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith("0 findings\n")


def test_a_finding_is_made_small() -> None:
    def many_rows(example: dict[str, Any]) -> list[str]:
        return ["too many"] if example.get("layer") == "linear" and example["shapes"]["input"][0] >= 5 else []

    ((problem, example),) = smallest(many_rows, ("jit",), 300, 0, float("inf"))
    assert problem == "too many"
    assert example["shapes"] == {"input": (5, 0), "weight": (0, 0)}


def test_a_finding_is_run_again_by_its_command(capsys: pytest.CaptureFixture[str]) -> None:
    def doubled(x, out):  # type: ignore[no-untyped-def]
        out[...] = 2 * x.clip(0)

    wrong = jitconv.register_variant("wrong", base="vector", relu=doubled).name
    for variant, code in ((wrong, 1), ("vector", 0)):
        example = {
            "layer": "relu", "shapes": {"input": (3, 4)}, "arguments": {}, "variant": variant, "dtype": "float32",
            "threads": 1, "seed": 0, "fill": "normal", "fill all": False, "layout": "sliced",
        }  # fmt: skip
        with pytest.raises(SystemExit) as ended:
            main(shlex.split(command(example))[3:])
        assert ended.value.code == code
    assert "quantity='forward'" in capsys.readouterr().out
