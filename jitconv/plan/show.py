"""Plans as tables: what each step is, and where the time of a call goes."""

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from jitconv import speed
from jitconv.plan.buffers import Array
from jitconv.plan.lower import Step
from jitconv.plan.program import Program
from jitconv.variants.threads import count

HEADINGS = ("step", "from", "shapes", "kernel", "MFLOP")


@dataclass
class Row:
    """One step of a plan. microseconds: its median time; gflops: flops over that time, per second, in 10⁹."""

    step: str
    made_from: str
    shapes: str
    kernel: str
    flops: int
    microseconds: float = 0.0
    gflops: float = 0.0


@dataclass
class Profile:
    """What a call's time went into: the steps' rows, the time of a whole call, and the peak of its cores, GFLOP/s."""

    title: str
    rows: list[Row]
    microseconds: float
    peak: float

    def __str__(self) -> str:
        cells = [
            (*_cells(r), f"{r.microseconds:.1f}", f"{r.gflops:.0f}" if r.flops else "", self._share(r))
            for r in self.rows
        ]
        steps = sum(r.microseconds for r in self.rows)
        rest = f"a call {self.microseconds:.1f} µs, its steps {steps:.1f} µs; peak {self.peak:.0f} GFLOP/s"
        return "\n".join([self.title, *_aligned([(*HEADINGS, "µs", "GFLOP/s", "of peak"), *cells]), rest])

    def _share(self, row: Row) -> str:
        return f"{row.gflops / self.peak:.0%}" if row.flops else ""


def table(plan: Any) -> str:
    """The steps of a plan, one a line, and what it keeps in memory."""
    program = plan.program
    rows = [_cells(row) for row in rows_of(program)]
    of_torch = sum(step.is_torch for step in program.steps)
    memory = f"{program.arena / 1e6:.2f} MB for what lies between them"
    end = f"{len(program.steps)} steps, {of_torch} of them torch's; {memory}"
    return "\n".join([_title(plan), *_aligned([HEADINGS, *rows]), end])


def rows_of(program: Program) -> list[Row]:
    return [
        Row(
            step.node.name,
            " + ".join(step.node.meta.get("from", (step.node.name,))),
            _shapes(step),
            step.name,
            step.flops,
        )
        for step in program.steps
    ]


def profile(plan: Any, program: Program, inputs: Sequence[Any], repeats: int) -> Profile:
    """The median time of each step and of a whole call, on these inputs, with as many cores as torch uses now."""
    if repeats < 1:
        raise ValueError(f"repeats must be positive, got {repeats!r}")
    times: list[list[float]] = [[] for _ in program.steps]
    whole: list[float] = []
    timer = program.timer(inputs)
    for _ in range(repeats + 1):  # the first compiles, and is not counted
        start = time.perf_counter()
        program(inputs)
        whole.append(time.perf_counter() - start)
        for spent, seconds in zip(times, timer(), strict=True):
            spent.append(seconds)
    rows = rows_of(program)
    for row, spent in zip(rows, times, strict=True):
        row.microseconds = statistics.median(spent[1:]) * 1e6
        row.gflops = row.flops / max(row.microseconds, 1e-3) / 1e3
    return Profile(_title(plan), rows, statistics.median(whole[1:]) * 1e6, speed.peak() * count())


def _title(plan: Any) -> str:
    model: nn.Module = plan.model
    return f"plan of {type(model).__name__}, {plan.variant.name}, for {plan.forms}"


def _cells(row: Row) -> tuple[str, ...]:
    return row.step, row.made_from, row.shapes, row.kernel, f"{row.flops / 1e6:.2f}" if row.flops else ""


def _shapes(step: Step) -> str:
    arrays = [a for a in step.args if isinstance(a, Array)]
    if step.is_torch:
        value = step.node.meta.get("val")
        return "→ " + (_times(value.shape) if isinstance(value, torch.Tensor) else "several")
    return f"{_times(arrays[0].shape)} → {_times(_result(arrays).shape)}"


def _result(arrays: list[Array]) -> Array:
    return next(a for a in reversed(arrays) if a.dtype.kind == "f")


def _times(shape: Sequence[int]) -> str:
    return "×".join(map(str, shape)) or "1"


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
