"""The ladder: every rung is right, short and on the page, and the page says nothing that was not measured."""

import json
import re
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "examples" / "ladder"
RUNGS = sorted(FOLDER.glob("[0-9]*_*.py"))


@pytest.fixture
def rung(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.syspath_prepend(str(FOLDER))
    import rung

    yield rung
    sys.modules.pop("rung", None)


@pytest.fixture
def page() -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "docs" / "make_ladder.py"))


@pytest.mark.parametrize("file", RUNGS, ids=lambda file: file.stem)
def test_a_rung_is_right(file: Path, rung: Any) -> None:
    module = rung.load(file)
    for layer in module.LAYERS:
        given = rung.arrays(layer, images=1)
        given[-1].fill(np.nan)
        result = module.conv2d(*given)
        assert rung.error(module, layer, *given[:3], given[3] if result is None else result) <= 1


def test_a_wrong_rung_has_no_time(rung: Any) -> None:
    class Wrong:
        IMAGES = 1

        @staticmethod
        def conv2d(x: Any, weight: Any, bias: Any, out: Any) -> None:
            out.fill(1)

    with pytest.raises(AssertionError, match="times the allowed error"):
        rung.measure(Wrong, "digits")


def test_a_rung_says_what_it_is(rung: Any, capsys: pytest.CaptureFixture[str]) -> None:
    rung.main(FOLDER / "4_taps.py")
    printed = capsys.readouterr().out
    assert re.search(r"right .* ms, .* GFLOP/s, .*% of the core's peak, .* times the rung before", printed)


@pytest.mark.parametrize("file", RUNGS, ids=lambda file: file.stem)
def test_a_rung_is_short_and_says_what_was_in_the_way(file: Path) -> None:
    text = file.read_text()
    assert len(text.splitlines()) < 80
    assert "in the way" in text.splitlines()[0].lower()


def test_the_page_is_what_the_script_writes(page: dict[str, Any]) -> None:
    assert set(page["STEPS"]) == {file.stem for file in RUNGS}
    results = json.loads(page["RESULTS"].read_text())
    assert (ROOT / "docs" / "ladder.md").read_text() == page["render"](results)
    for stem in page["STEPS"]:
        assert (ROOT / "docs" / "ladder" / f"{stem}.svg").read_text() == page["picture"](stem)


def test_every_rung_and_layer_was_measured(page: dict[str, Any], rung: Any) -> None:
    results = json.loads(page["RESULTS"].read_text())
    assert set(page["lacking"](results)) <= {"cpu", "torch"}
    layers = {file.stem: set(rung.load(file).LAYERS) for file in RUNGS}
    assert {stem: set(rows) for stem, rows in results["rungs"].items()} == layers


def test_what_was_not_measured_is_named(page: dict[str, Any]) -> None:
    results = json.loads(page["RESULTS"].read_text())
    del results["rungs"]["10_blocked"], results["rungs"]["3_rows"]["resnet"]
    results.pop("torch", None)
    results["cpu"] = "processor"
    assert page["lacking"](results) == ["torch", "3_rows of resnet", "10_blocked of resnet"]


def test_torch_and_the_processor_are_on_the_page(page: dict[str, Any]) -> None:
    results = json.loads(page["RESULTS"].read_text()) | {"cpu": "Example 9000", "peak": 100e9}
    results["torch"] = {"resnet": {"seconds": 0.02, "flops": 1e9}}
    text = page["render"](results)
    assert "on one core (Example 9000)" in text
    assert "| torch | 64→64 | 20 | 50 | 50.0% |  |" in text
    assert "| the core's peak | multiply-adds in registers |  | 100 | 100.0% |  |" in text


def test_paragraphs_are_short_and_numbers_stand_in_tables(page: dict[str, Any]) -> None:
    text = (ROOT / "docs" / "ladder.md").read_text()
    text = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    for paragraph in text.split("\n\n"):
        if not paragraph.startswith("|"):
            assert len(paragraph.split()) <= 90, paragraph
            assert not re.search(r"\d\s*(ms|µs|s\b|%|times|GFLOP)", paragraph), paragraph
