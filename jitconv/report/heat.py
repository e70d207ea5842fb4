"""The table of all rows: works × engines, in every state of its switches."""

import math
from typing import Any

from jitconv.report.first import ENGINES
from jitconv.report.read import OURS, PLAN, Results, Row
from jitconv.report.words import FLAGGED, QUANTITIES, seconds, times

CHOICES = {  # groups of rows that the table of all rows shows beside layers, and what its switch calls them
    "resnet": "ResNet-18, ",
    "products": "matrix products",
    "scaling": "scaling",
    "network": "SimpleConvNet",
    "models": "models",
    "overhead": "smallest calls",
}
SHOWN_LAYERS = ("conv2d", "max_pool2d", "flatten", "linear", "relu", "softmax", "cross_entropy")


def heat(results: Results, index: dict[int, int]) -> dict[str, Any]:
    """Return the lines of works × engines in every state of the switches, and the columns.

    empty: of each choice which columns have nothing; unmeasured: the states of the switches that have no line.
    """
    choices = {id(row): known for row in results.rows if row.device == "cpu" and (known := _choice(row))}
    rows = [row for row in results.rows if id(row) in choices]
    rows.sort(key=lambda row: SHOWN_LAYERS.index(row.layer) if row.layer in SHOWN_LAYERS else 9)
    rows.sort(key=lambda row: (row.axis, row.size) if row.group == "scaling" else ("", row.batch))
    present = results.sorted_variants({row.variant for row in rows})
    first = [name for name in (OURS, PLAN, *ENGINES) if name in present]
    columns = first + [name for name in reversed(present) if name not in first]
    lines: dict[Any, dict[str, Any]] = {}
    for row in rows:
        choice = choices[id(row)][0]
        label = str(row.work).rpartition(",")[0] if row.group in ("layers", "resnet") else row.work
        line = lines.setdefault(
            (choice, row.work, row.quantity, row.threads),
            {"label": label, "choice": choice, "quantity": row.quantity, "threads": row.threads, "cells": {}},
        )
        line["cells"][row.variant] = _cell(row, index[id(row)])
    names = {
        value: label for value, label, _ in sorted(set(choices.values()), key=lambda choice: (choice[2], choice[1]))
    }
    quantities = [name for name in QUANTITIES if any(line["quantity"] == name for line in lines.values())]
    states = {(line["choice"], line["quantity"], line["threads"]) for line in lines.values()}
    filled = {(line["choice"], name) for line in lines.values() for name in line["cells"]}
    return {
        "columns": columns,
        "lines": list(lines.values()),
        "threads": results.lanes,
        "choices": list(names.items()),
        "quantities": quantities,
        "empty": [
            (choice, i + 2) for choice in names for i, name in enumerate(columns) if (choice, name) not in filled
        ],
        "unmeasured": sorted({(choice, q, t) for choice in names for q in quantities for t in results.lanes} - states),
    }


def _choice(row: Row) -> tuple[str, str, Any] | None:
    """The value, the label and the place of the switch under which a row is shown; None for one that is not."""
    images = f"{row.batch:,} image{'s' * (row.batch != 1)}"
    if row.group == "layers":
        return str(row.batch), images, (0, row.batch)
    group = "network" if row.group == "batches" else row.group
    if group not in CHOICES:
        return None
    by_batch = group == "resnet"
    place = (1 + [*CHOICES].index(group), row.batch if by_batch else 0)
    return f"{group}-{row.batch}" if by_batch else group, CHOICES[group] + images * by_batch, place


def _cell(row: Row, i: int) -> dict[str, Any]:
    value = None if row.ratio is None else row.ratio.middle
    plain = value is None or row.tie or bool(row.ratio_flags)
    strength = 0.0 if plain or value is None else 0.12 + 0.88 * min(1.0, abs(math.log2(value)) / 3)
    return {
        "i": i,
        "time": seconds(row.seconds),
        "ratio": "" if value is None else times(value) + FLAGGED * bool(row.ratio_flags),
        "heat": f"{strength:.2f}",
        "kind": "" if plain else "fast" if value and value > 1 else "slow",
        "tie": row.tie and not row.ratio_flags,
        "flags": ", ".join(row.flags),
    }
