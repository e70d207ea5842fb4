"""Faults: what is cut short, interrupted, killed or open to others ends in the right numbers or a clear error."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import jitconv
from jitconv import machine
from jitconv.plan import program
from jitconv.variants import compiling


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_a_plan_interrupted_while_it_is_bound_computes_right_later(
    error: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kernels are compiled there, so there Ctrl-C is most likely."""
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(100, 5)).eval()
    x, bound = torch.randn(2, 1, 12, 12), []
    plan = jitconv.plan(model, x)

    def interrupted(frame: Any, step: Any, stand_ins: Any) -> Any:
        bound.append(step)
        if len(bound) == 2:
            raise error
        return real(frame, step, stand_ins)

    real = program.Frame._recorded
    monkeypatch.setattr(program.Frame, "_recorded", interrupted)
    with pytest.raises(error):
        plan(x)
    with torch.no_grad():
        torch.testing.assert_close(plan(x), model(x))


def increment(n):  # type: ignore[no-untyped-def]
    return n + 1


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "user" / "cache"
    folder.mkdir(parents=True)
    monkeypatch.setattr("numba.core.config.CACHE_DIR", str(folder))
    return folder


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="folders have no modes here")
@pytest.mark.parametrize("place", [".", ".."])
def test_a_cache_that_others_can_write_to_or_replace_is_refused(cache: Path, place: str) -> None:
    """The code goes elsewhere, and `jitconv doctor` names the folder."""

    def folder() -> Path:
        return Path(compiling.njit(increment).stats.cache_path)

    opened = (cache / place).resolve()
    assert cache in folder().parents
    opened.chmod(0o777)
    with pytest.warns(compiling.UntrustedCache, match=f"others can write to {opened}"):
        kernel = compiling.njit(increment)
    assert kernel(1) == 2
    assert not list(cache.rglob("*.nb?"))
    assert any(f"others can write to {opened}: chmod o-w, or set NUMBA_CACHE_DIR" in it for it in machine.problems())
    opened.chmod(0o1777)  # as /tmp is: what we make in it stays ours
    assert cache in folder().parents
