"""The ladder: every rung is right, short and on the page, and the page says nothing that was not measured."""

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
    assert (ROOT / "docs" / "ladder.md").read_text() == page["render"]()
    for stem in page["STEPS"]:
        assert (ROOT / "docs" / "ladder" / f"{stem}.svg").read_text() == page["picture"](stem)


def test_paragraphs_are_short_and_numbers_stand_in_tables(page: dict[str, Any]) -> None:
    text = re.sub(r"```.*?```", "", page["render"](), flags=re.DOTALL)
    for paragraph in text.split("\n\n"):
        if not paragraph.startswith("|"):
            assert len(paragraph.split()) <= 90, paragraph
            assert not re.search(r"\d\s*(ms|µs|s\b|%|times|GFLOP)", paragraph), paragraph
