"""A short run of the fuzzer, whose long runs are `python -m tests.fuzz --minutes N --seed S`; and that it finds."""

import shlex
import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

import jitconv
from tests.fuzz.__main__ import command, main, smallest, wrong
from tests.fuzz.draw import case_of
from tests.fuzz.exact import WIDER, Exact

FOUND = [  # wrong once
    {  # a kernel read torch's result after it had been freed
        "plan": [["add", 3], ["pool", 32], ["add", 3], ["depthwise", 3], ["depthwise", 3], ["add", 20], ["conv", 20]],
        "shape": [1, 16, 1, 1], "variant": "jit-tiled", "dtype": "float32", "threads": 1, "seed": 0,
    },
    {  # a sum of 32 terms that begins with a huge one: 1.07 of the bound, torch's 0.75 in such draws
        "layer": "conv2d", "shapes": {"input": [2, 16, 6, 32], "weight": [16, 16, 1, 2]},
        "arguments": {"stride": [1, 1], "padding": [0, 0], "dilation": [1, 1], "groups": 1}, "variant": "jit-tiled",
        "dtype": "float64", "threads": 1, "seed": 0, "fill": "huge", "fill all": True, "layout": "contiguous",
    },
    {  # the loss of a class whose logit is -inf was NaN with label smoothing, and is infinite
        "layer": "cross_entropy", "shapes": {"input": [1, 4]},
        "arguments": {"reduction": "none", "label_smoothing": 0.1, "ignore_index": -100}, "weighted": False,
        "variant": "jit", "dtype": "float32", "threads": 1, "seed": 0, "fill": "infinities", "fill all": False,
        "layout": "contiguous",
    },
    {  # losses were added up one after the other: 11 eps of the sum of 144, 1,461 of that of 50,176
        "layer": "cross_entropy", "shapes": {"input": [2, 5, 8, 9]},
        "arguments": {"reduction": "sum", "label_smoothing": 0.0, "ignore_index": -1}, "weighted": False,
        "variant": "jit-tiled", "dtype": "float64", "threads": 1, "seed": 0, "fill": "zeros", "fill all": False,
        "layout": "contiguous",
    },
    {  # and their weights
        "layer": "cross_entropy", "shapes": {"input": [8, 6, 5, 9]},
        "arguments": {"reduction": "mean", "label_smoothing": 0.0, "ignore_index": 1}, "weighted": True,
        "variant": "jit-tiled", "dtype": "float64", "threads": 1, "seed": 0, "fill": "positive", "fill all": False,
        "layout": "contiguous",
    },
]  # fmt: skip


@pytest.mark.parametrize("example", FOUND)
def test_what_was_found_is_mended(example: dict[str, Any]) -> None:
    assert wrong(example) == []


SUM = {  # of 297 positive terms: torch's is off by 8.6 eps of it on an AVX-512 processor, more than the bound
    "layer": "conv2d", "shapes": {"input": [3, 33, 8, 23], "weight": [31, 33, 3, 3]},
    "arguments": {"stride": [1, 1], "padding": [1, 3], "dilation": [1, 1], "groups": 1}, "variant": "jit-tiled",
    "dtype": "float64", "threads": 1, "seed": 1, "fill": "positive", "fill all": True, "layout": "repeated",
}  # fmt: skip


@pytest.mark.skipif(not WIDER, reason="NumPy has no wider numbers here")
def test_the_oracle_of_float64_is_exact_where_torch_is_not() -> None:
    expected = Exact(case_of(SUM), "float64", seed=1)
    x, weight = (expected.inputs[name].numpy() for name in ("input", "weight"))
    products = [Fraction(a) * Fraction(b) for a, b in zip(x[0, :, :3, :3].flat, weight[0].flat, strict=True)]
    assert expected.oracle["forward"][0, 0, 1, 3] == float(sum(products, Fraction(0)))
    assert wrong(SUM) == []


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
