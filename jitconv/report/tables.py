"""What the sections of the page show, as plain lists for the template."""

import math
import statistics
from collections import defaultdict
from typing import Any

from jitconv.report.first import ENGINES, link
from jitconv.report.heat import heat
from jitconv.report.losses import losses
from jitconv.report.read import BASELINE, OURS, PLAN, WINOGRAD, Results, Row, marked, trained_through
from jitconv.report.words import (
    FLAGGED,
    cores,
    data_set,
    digits,
    lists,
    named,
    percent,
    seconds,
    seeds,
    times,
)

HOMEWORK = (  # what its author published, on a T4
    ("interpreted loops, one image", 86.67, "interpreted"),
    ("vector form, one image", 0.045, "vector"),
)
MISTAKES = (
    (
        "convolution",
        "rounding only",
        "overwrote its input channels: right for one channel only",
        "sums over every channel",
    ),
    ("im2col", "–", "read channel 0 only", "columns of length C_in·K_h·K_w"),
    ("pooling", "0.138", "took wrong windows", "equal to torch bit for bit, with indices"),
    ("dense layer", "rounding only", "was checked against itself", "checked against torch, in float64 too"),
)


def sections(results: Results) -> dict[str, Any]:
    """Return every section's content by its name in the template; empty where nothing was measured."""
    index = {id(row): i for i, row in enumerate(results.rows)}
    return {
        "heat": heat(results, index),
        "losses": losses(results),
        "models": models(results),
        "compiling": _compiling(results),
        "overhead": _overhead(results),
        "correct": correctness(results),
        "trainings": trainings(results.trainings, results.machines[:1]),
        "reached": reached(results),
        "rounds": max((len(rounds) for row in results.rows for rounds in row.passes), default=0),
        "homework": _homework(results),
        "mistakes": MISTAKES,
        "gpu": _gpu(results),
        "limits": _limits(results),
        "borrowed": _borrowed(results),
        "gaps": _gaps(results),
        "machines": _machines(results.machines),
        "threads": _threads(results),
    }


def models(results: Results) -> dict[str, Any]:
    """Return whole models by engine: a line a model, quantity and number of cores."""
    rows = results.pick(group="models")
    order = [OURS, PLAN, *WINOGRAD, BASELINE, *ENGINES[1:], "vector"]
    columns = [name for name in order if any(row.variant == name for row in rows)]
    lines = []
    for key in dict.fromkeys((row.work, row.quantity, row.threads) for row in rows):
        found = {row.variant: row for row in rows if (row.work, row.quantity, row.threads) == key}
        fit = [row for row in found.values() if not row.flags and row.variant not in WINOGRAD]
        best = min((row.seconds for row in fit), default=math.nan)
        cells = [
            {
                "time": seconds(found[name].seconds),
                "ratio": _shown_ratio(found[name]),
                "best": found[name].seconds == best,
                "link": link(found[name]),
                "flags": ", ".join(found[name].flags),
            }
            if name in found
            else None
            for name in columns
        ]
        lines.append({"work": key[0], "quantity": key[1], "cores": cores(key[2]), "cells": cells})
    return {
        "columns": columns,
        "lines": sorted(lines, key=lambda line: (line["quantity"], line["work"], line["cores"])),
    }


def _shown_ratio(row: Row) -> str:
    return "" if row.ratio is None else times(row.ratio.middle) + FLAGGED * bool(row.ratio_flags)


def _compiling(results: Results) -> list[dict[str, Any]]:
    rows = sorted(results.pick(group="compiling"), key=lambda row: -(row.info.get("cold_seconds") or 0))
    return [
        {
            "name": row.variant,
            "cold": seconds(row.info["cold_seconds"]),
            "warm": seconds(row.info["warm_seconds"]),
            "memory": f"{digits(row.info['peak_mib'], 3)} MiB" if row.info.get("peak_mib") else "not measured",
        }
        for row in rows
    ]


def _overhead(results: Results) -> dict[str, Any]:
    rows = results.pick(group="overhead")
    names = [
        name
        for name in (OURS, BASELINE, "a Function that computes nothing")
        if any(row.variant == name for row in rows)
    ]
    lines = [
        {
            "work": work,
            "cells": [
                next(
                    (seconds(row.seconds, 2) + marked(row) for row in rows if (row.work, row.variant) == (work, name)),
                    "–",
                )
                for name in names
            ],
        }
        for work in dict.fromkeys(row.work for row in rows)
    ]
    return {"columns": [named(name) for name in names], "lines": lines}


def correctness(results: Results) -> dict[str, Any]:
    """Return the study's MSE table in float32: a line a layer of the network, a column a variant."""
    checks = [each for each in results.digits if each["dtype"] == "float32"]
    columns = [name for name in results.sorted_variants({each["variant"] for each in checks}) if name != BASELINE]
    cells: dict[tuple[str, str], dict[str, Any]] = {}
    for each in checks:
        cell = cells.setdefault((each["case"], each["variant"]), {"used": 0.0, "by": "", "mse": 0.0, "ok": True})
        if each["bound_used"] > cell["used"]:
            cell["used"], cell["by"] = each["bound_used"], "forward" if each["quantity"] == "forward" else "gradient"
        cell["ok"] = cell["ok"] and each["ok"]
        if each["quantity"] == "forward":
            cell["mse"], cell["torch"] = each["mse"], each["torch_error"]
    for cell in cells.values():
        cell["rms"] = "equal" if cell["mse"] == 0 else digits(1e9 * math.sqrt(cell["mse"]), 2)
        cell["bound"] = percent(cell["used"])
    lines = [
        {"case": case, "cells": [cells.get((case, name)) for name in columns]}
        for case in dict.fromkeys(each["case"] for each in checks)
    ]
    by_variant: dict[str, dict[str, Any]] = {}
    for each in results.cases:
        line = by_variant.setdefault(each["variant"], {"results": 0, "wrong": 0, "used": 0.0, "sample": False})
        line["results"] += each["results"]
        line["wrong"] += each["wrong"]
        line["sample"] = line["sample"] or each.get("sample", False)
        line["used"] = max(line["used"], each["bound_used"])
    cases = [
        {
            "name": name,
            "results": f"{by_variant[name]['results']:,}" + ", a sample" * by_variant[name]["sample"],
            "wrong": by_variant[name]["wrong"],
            "used": percent(by_variant[name]["used"]),
        }
        for name in results.sorted_variants(by_variant)
    ]
    return {"columns": columns, "lines": lines, "cases": cases, "own": _own_bounds(results)}


def _own_bounds(results: Results) -> list[dict[str, Any]]:
    """Return a line a case that tries a variant's own bound: its largest error forward in float32, beside torch's."""
    checks = [each for each in results.own_bounds if (each["quantity"], each["dtype"]) == ("forward", "float32")]
    return [
        {
            "variant": each["variant"],
            "case": each["case"],
            "times": times(each["error"] / each["torch_error"]) if each["torch_error"] else "–",
            "bound": percent(each["bound_used"]),
        }
        for each in checks
        if math.isfinite(each["error"])
    ]


def trainings(runs: list[dict[str, Any]], machines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return a line for each data set, engine and number of epochs: accuracy over seeds, and what torch's is less.

    Seconds of an epoch say so where their processor is not one of `machines`.
    """
    here = {machine["numba_target"] for machine in machines}
    runs_of: dict[tuple[str, int, str], list[dict[str, Any]]] = defaultdict(list)
    for run in runs:
        runs_of[run["config"]["data"], len(run["epochs"]), trained_through(run)].append(run)
    lines = []
    for (data, epochs, variant), found in runs_of.items():
        reached = _accuracies(found)
        torchs = _accuracies(runs_of.get((data, epochs, BASELINE), []))
        elsewhere = sorted({run["machine"]["numba_target"] for run in found} - here)
        took = statistics.median(epoch["seconds"] for run in found for epoch in run["epochs"])
        common = sorted(reached.keys() & torchs.keys()) if variant != BASELINE else []
        lines.append(
            {
                "data": data_set(data),
                "variant": variant,
                "epochs": epochs,
                "seeds": f"{len(found)}" if len(found) > 1 else "1, so no interval",
                "images": f"{found[0]['images']:,}",
                "device": found[0]["config"].get("device", "cpu"),
                "epoch": seconds(took)
                + (", estimated" if found[0]["estimated"] else "")
                + (f", on another processor ({', '.join(elsewhere)})" if elsewhere else ""),
                "accuracy": _over_seeds(list(reached.values())),
                "beside": _over_seeds([reached[seed] - torchs[seed] for seed in common], sign=True),
            }
        )
    return lines


def _accuracies(runs: list[dict[str, Any]]) -> dict[int, float]:
    """The last accuracy by seed."""
    last = {run["config"]["seed"]: run["epochs"][-1]["accuracy"] for run in runs}
    return {seed: accuracy for seed, accuracy in last.items() if accuracy is not None}


def _over_seeds(values: list[float], sign: bool = False) -> str:
    """The mean in per cent, with its interval where there are several seeds."""
    if not values:
        return "–"
    mean, half = seeds(values)
    shown = f"{100 * mean:{'+' * sign}.2f}".replace("-", "−")
    return f"{shown} %" if math.isnan(half) else f"{shown} ± {100 * half:.2f} %"


def reached(results: Results) -> str:
    """Return how much of the peak torch's libraries reach, in a sentence: a ratio to them says nothing of that."""
    peak, parts = results.peak(), []
    for group, what in (("products", "matrix products"), ("resnet", "ResNet-18's convolutions")):
        rows = [
            [row for row in results.pick(group=group, quantity="forward", threads=1, variant=name) if not row.flags]
            for name in (BASELINE, OURS)
        ]
        shares = [sorted(row.flops / row.seconds / peak for row in each) for each in rows]
        if all(shares) and not math.isnan(peak):
            (low, high), (least, most) = ((percent(each[0]), percent(each[-1])) for each in shares)
            theirs, mine = (a if a == b else f"{a[:-2]} to {b}" for a, b in ((low, high), (least, most)))
            parts.append(f"in {what} {theirs} ({OURS} {mine})")
    if not parts:
        return ""
    return (
        f"torch is only as fast as its libraries are on this processor. Of one core's measured peak, "
        f"{digits(peak / 1e9, 3)} GFLOP/s, they reach {lists(parts)}: where their share is low, a win over torch "
        f"says as much of them as of this project. On a processor that they are tuned for, ratios can be other ones."
    )


def _homework(results: Results) -> dict[str, Any]:
    found = {row.variant: row for row in results.pick(group="network", work="forward, 1", threads=1)}
    rows = [
        {"what": what, "then": seconds(then), "now": found[name].shown if name in found else "–"}
        for what, then, name in HOMEWORK
    ]
    rows += [
        {"what": f"{named(name)}, one image", "then": "–", "now": found[name].shown}
        for name in ("jit", OURS, PLAN, BASELINE)
        if name in found
    ]
    both = {"interpreted", "vector"} <= found.keys()
    return {
        "rows": rows,
        "then": digits(86.67 / 0.045, 4),
        "now": digits(found["interpreted"].seconds / found["vector"].seconds, 2)
        + marked(found["interpreted"], found["vector"])
        if both
        else "",
    }


def _gpu(results: Results) -> list[dict[str, Any]]:
    lines = []
    for row in results.pick(device="cuda"):
        kernel = row.info.get("kernel_seconds")
        theirs = results.one(device="cuda", work=row.work, quantity=row.quantity, variant=BASELINE)
        base = theirs.info.get("kernel_seconds") if theirs else None
        value = base / kernel if base and kernel else row.ratio.middle if row.ratio else None
        lines.append(
            {
                "work": row.work,
                "quantity": row.quantity,
                "variant": row.variant,
                "kernel": seconds(kernel),
                "call": seconds(row.seconds),
                "whole": seconds(row.info.get("end_to_end_seconds")),
                "ratio": times(value),
            }
        )
    return lines


def _limits(results: Results) -> list[dict[str, str]]:
    rows = sorted(results.pick(layer="machine", device="cpu"), key=lambda row: (row.quantity, row.work, row.threads))
    return [
        {
            "work": row.work,
            "cores": cores(row.threads),
            "unit": "GFLOP/s" if row.flops else "GB/s",
            "rate": digits((row.flops or row.bytes) / min(row.samples) / 1e9, 3),  # a limit, as in Results.peak
        }
        for row in rows
    ]


def _threads(results: Results) -> list[dict[str, str]]:
    """How much faster jit-tiled and torch are on all cores than on one, where there is work to share."""
    if len(results.lanes) < 2:
        return []
    most, lines = results.lanes[-1], []
    for row in results.pick(variant=OURS, threads=1):
        if row.group not in ("layers", "network", "resnet") or row.batch not in (8, 64, 1000):
            continue
        cells = []
        for name in (OURS, BASELINE):
            one, several = (
                results.one(group=row.group, work=row.work, quantity=row.quantity, variant=name, threads=n)
                for n in (1, most)
            )
            cells.append(
                times(one.seconds / several.seconds) if one and several and not (one.flags or several.flags) else "–"
            )
        if row.seconds > 3e-4:
            lines.append({"work": f"{row.work}, {row.quantity}", "ours": cells[0], "torch": cells[1]})
    return lines


def _borrowed(results: Results) -> list[tuple[str, str, str]]:
    """Which variant runs another one's kernels, and for what: a layer, or single works where others have its own."""
    own = {(row.variant, row.layer) for row in results.rows if not row.borrows}
    found = {
        (row.variant, row.work if (row.variant, row.layer) in own else row.layer, row.borrows)
        for row in results.rows
        if row.borrows
    }
    return sorted(found)


def _gaps(results: Results) -> list[str]:
    """Return what has no time, and why, the same reason once; and what the page would show had it been given."""
    reasons: dict[tuple[str, str], list[str]] = defaultdict(list)
    for gap in results.gaps:
        reasons[gap["outcome"], gap["why"].removeprefix("Skipped: ")].append(gap["row"])
    found = [
        f"{len(rows)} row{'s' * (len(rows) > 1)} {outcome}, {why}: {'; '.join(rows[:4])}{' …' if len(rows) > 4 else ''}"
        for (outcome, why), rows in reasons.items()
    ]
    have = {"benchmarks": bool(results.rows), "verification": bool(results.digits), "training": bool(results.trainings)}
    return found + [f"{name}: no such results were given" for name, there in have.items() if not there]


def _machines(machines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One entry for each machine, with the files that were measured on it."""
    known: dict[tuple[str, Any], dict[str, Any]] = {}
    for machine in machines:
        entry = known.setdefault((machine["cpu"], machine["cores"]), {**machine, "files": []})
        entry["files"].append(machine["file"])
    return list(known.values())
