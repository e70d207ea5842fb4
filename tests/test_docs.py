"""What the documentation shows runs, and the site has no broken link."""

import doctest
import importlib.util
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

from jitconv import functional, nn
from jitconv.plan import kernels
from jitconv.plan.rewrite import REWRITES

DOCS = Path(__file__).parents[1] / "docs"


@pytest.mark.parametrize("page", ["quickstart", "reference"])
def test_examples_show_what_happens(page: str) -> None:
    text = (DOCS / f"{page}.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```pycon\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert blocks
    test = doctest.DocTestParser().get_doctest("".join(blocks), {}, page, page, 0)
    output: list[str] = []
    failed = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(test, out=output.append).failed
    assert not failed, "".join(output)


def test_every_layer_is_in_the_reference() -> None:
    text = (DOCS / "reference.md").read_text(encoding="utf-8")
    modules = [name for name, value in vars(nn).items() if isinstance(value, type) and value.__module__ == nn.__name__]
    wanted = [f"functional.{name}" for name in functional.LAYERS]
    wanted += [f"nn.{name}" for name in (*modules, "convert") if not name.startswith("_")]
    assert len(wanted) > 15
    assert [name for name in wanted if f":: jitconv.{name}\n" not in text] == []


def test_the_page_on_plans_shows_the_code_as_it_is() -> None:
    text = (DOCS / "plan.md").read_text(encoding="utf-8")
    assert inspect.getsource(kernels.softmax) in text
    assert re.findall(r"^ +\| `(\w+)` \|", text, re.MULTILINE) == list(REWRITES)


@pytest.mark.skipif(importlib.util.find_spec("furo") is None, reason="the site needs pip install 'jitconv[docs]'")
def test_the_site_is_built_without_a_warning(tmp_path: Path) -> None:
    run = [sys.executable, "-m", "sphinx", "--fail-on-warning", "--keep-going", "-q", str(DOCS), str(tmp_path)]
    done = subprocess.run(run, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "conv2d" in (tmp_path / "reference.html").read_text(encoding="utf-8")
    examples = {file.name for file in (DOCS.parent / "examples").glob("**/*.*") if file.suffix in (".py", ".ipynb")}
    copies = {file.name: file for file in (tmp_path / "_downloads").glob("*/*")}
    assert copies.keys() >= examples - {"rung.py"}  # which times the ladder's scripts
    pages = "".join(page.read_text(encoding="utf-8") for page in tmp_path.glob("*.html"))
    assert all(f'href="{file.relative_to(tmp_path).as_posix()}"' in pages for file in copies.values())
