"""The notebook runs, and still says what it shows: wrong layers are wrong, ours are not."""

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parents[1] / "examples" / "homework.ipynb"


def printed(notebook: nbformat.NotebookNode) -> str:
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    assert not [output for output in outputs if output.output_type == "error"]
    return "".join(output.text for output in outputs)


@pytest.fixture(scope="module")
def anew() -> str:
    """What the notebook prints when it is run now."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(NOTEBOOK.parent)}}).execute()
    return printed(notebook)


def test_it_is_small_and_has_been_run() -> None:
    assert NOTEBOOK.stat().st_size < 30_000
    assert "of the test digits right" in printed(nbformat.read(NOTEBOOK, as_version=4))


def test_each_mistake_is_shown(anew: str) -> None:
    errors = {name.strip(): float(mse) for name, mse in re.findall(r"^(.{52}) +(\S+)$", anew, re.MULTILINE)}
    wrong = ("3 channels: overwritten", "3 channels: im2col of channel 0", "a maximum that begins at 0")
    wrong += ("a wrong layer against torch",)
    unseen = ("1 channels: overwritten", "1 channels: im2col of channel 0", "the same, after a relu")
    unseen += ("a wrong layer against itself",)
    assert all(errors.pop(name) > 1e-3 for name in wrong)
    assert all(errors.pop(name) < 1e-10 for name in unseen)
    assert len(errors) == 11
    assert all(error < 1e-10 for error in errors.values())


def test_ours_keep_their_bounds_and_learn(anew: str) -> None:
    used = [int(share) for share in re.findall(r"bound used (\d+)%", anew)]
    assert len(used) == 3
    assert max(used) <= 100
    accuracies = [float(share) for share in re.findall(r"(\S+)% of the test digits right", anew)]
    assert accuracies[-1] > 70
