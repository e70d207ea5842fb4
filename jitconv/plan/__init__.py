"""A network as one call: `jitconv.plan(model, *example)`, and `torch.compile(model, backend="jitconv")`.

capture.py takes the graph (torch.export), rewrite.py fuses it, lower.py chooses a kernel for each node (kernels.py) and
a place for each array (buffers.py), program.py holds what is ready to run and runs it, run.py is the Plan that users
call. show.py prints plans; backend.py makes them of torch.compile's graphs.

This package is itself what users call: `jitconv.plan` is a module whose call is `plan`, so that importing a part of it
(`import jitconv.plan.run`) never changes what that name means.
"""

import sys
from types import ModuleType
from typing import Any

from torch import nn

from jitconv.plan.run import Plan

__all__ = ["Plan", "plan"]


def plan(model: nn.Module, *example: Any, variant: str | None = None) -> Plan:
    """Return the model's forward as one call, for inputs like the example's: see Plan.

    variant: whose kernels compute it (None: the CPU's best). Raises TypeError or ValueError naming the argument, its
    value and the rule, or the line of the model that cannot be captured.
    """
    return Plan(model, example, variant)


class _Callable(ModuleType):
    def __call__(self, model: nn.Module, *example: Any, variant: str | None = None) -> Plan:
        return plan(model, *example, variant=variant)


sys.modules[__name__].__class__ = _Callable
