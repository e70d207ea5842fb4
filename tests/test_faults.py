"""Faults: what is cut short, interrupted, killed or open to others ends in the right numbers or a clear error."""

from typing import Any

import pytest
import torch
from torch import nn

import jitconv
from jitconv.plan import program


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
