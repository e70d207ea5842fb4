"""What the sections of the page show, as plain lists for the template."""

import math
import statistics
from collections import defaultdict
from typing import Any

from jitconv.report.first import ENGINES, SINGLE
from jitconv.report.read import BASELINE, OURS, PLAN, Results, Row, level, trained_through
from jitconv.report.words import cores, digits, named, percent, ratio, seconds, times

HEAT = ("layers", "resnet", "products")
RACED = (*SINGLE, "network", "models")  # groups of rows that ours may lose
LAYERS = ("conv2d", "max_pool2d", "flatten", "linear", "relu", "softmax", "cross_entropy")
SMALL = 1e-4  # seconds: losses of shorter calls are folded together
HOMEWORK = (  # what its author published, on a T4
    ("interpreted loops, one image", 86.67, "interpreted"),
    ("vector form, one image", 0.045, "vector"),
)
MISTAKES = (
    (
        "convolution",
        "0.0000000000000015",
        "overwrote its input channels: right for one channel only",
        "sums over every channel",
    ),
    ("im2col", "–", "read channel 0 only", "columns of length C_in·K_h·K_w"),
    ("pooling", "0.138", "took wrong windows", "equal to torch bit for bit, with indices"),
    ("dense layer", "0.00000000000004", "was checked against itself", "checked against torch, in float64 too"),
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
        "trainings": trainings(results.trainings),
        "homework": _homework(results),
        "mistakes": MISTAKES,
        "gpu": _gpu(results),
        "limits": _limits(results),
        "borrowed": sorted({(row.variant, row.layer, row.borrows) for row in results.rows if row.borrows}),
        "gaps": _gaps(results),
        "machines": _machines(results.machines),
        "threads": _threads(results),
    }


def heat(results: Results, index: dict[int, int]) -> dict[str, Any]:
    """Return the lines of layers × variants in every state of the switches, and the columns."""
    rows = [row for row in results.rows if row.group in HEAT and row.device == "cpu"]
    rows.sort(key=lambda row: (HEAT.index(row.group), LAYERS.index(row.layer) if row.layer in LAYERS else 9))
    present = results.sorted_variants({row.variant for row in rows})
    first = [name for name in (OURS, BASELINE) if name in present]
    columns = first + [name for name in reversed(present) if name not in first]
    lines: dict[Any, dict[str, Any]] = {}
    for row in rows:
        lot = str(row.batch) if row.group == "layers" else row.group
        label = row.work if row.group == "products" else str(row.work).rpartition(",")[0]
        line = lines.setdefault(
            (lot, row.work, row.quantity, row.threads),
            {"label": label, "lot": lot, "quantity": row.quantity, "threads": row.threads, "cells": {}},
        )
        line["cells"][row.variant] = _cell(row, index[id(row)])
    lots = list(dict.fromkeys(line["lot"] for line in lines.values()))
    names = {"resnet": "ResNet-18", "products": "products"}
    return {
        "columns": columns,
        "lines": list(lines.values()),
        "threads": results.lanes,
        "lots": [
            (lot, names.get(lot, f"{lot} image{'s' * (lot != '1')}"))
            for lot in sorted(lots, key=lambda lot: (not lot.isdigit(), int(lot) if lot.isdigit() else 0))
        ],
        "quantities": [
            name
            for name in ("forward", "backward", "weight gradient")
            if any(line["quantity"] == name for line in lines.values())
        ],
    }


def _cell(row: Row, i: int) -> dict[str, Any]:
    value = None if row.ratio is None else row.ratio.middle
    plain = value is None or row.tie or bool(row.flags)
    strength = 0.0 if plain or value is None else 0.12 + 0.88 * min(1.0, abs(math.log2(value)) / 3)
    return {
        "i": i,
        "time": seconds(row.seconds),
        "ratio": "" if value is None else times(value),
        "heat": f"{strength:.2f}",
        "kind": "" if plain else "fast" if value and value > 1 else "slow",
        "tie": row.tie,
        "flags": ", ".join(row.flags),
    }


def causes(results: Results) -> list[tuple[Any, str]]:
    """Return the table of causes: a test of our row and the winner, and a sentence; the first that fits is shown."""
    calls = {name: [row.seconds for row in results.pick(group="overhead", variant=name)] for name in (OURS, BASELINE)}
    cost = "a call costs more in Python than in C++ before it computes"
    if all(calls.values()):
        (a, b), (c, d) = ((1e6 * min(each), 1e6 * max(each)) for each in calls.values())
        cost = f"a call costs {digits(a, 2)} to {digits(b, 2)} µs before it computes, torch's {digits(c, 2)} "
        cost += f"to {digits(d, 2)}"
    return [
        (lambda row, winner: row.seconds < SMALL, cost),
        (
            lambda row, winner: winner not in ENGINES,
            "a lower rung fits this shape better than the kernel chosen for it",
        ),
        (
            lambda row, winner: row.variant == OURS and winner != BASELINE,
            "single layers against an engine that fuses the network",
        ),
        (
            lambda row, winner: row.group == "models" and "step" in row.quantity,
            "convolutions of 16 channels and more stay torch's in training",
        ),
        (lambda row, winner: row.threads > 1, "work is shared out to the cores in fewer, larger parts"),
        (lambda row, winner: row.variant == PLAN, "its kernels for some of these shapes are faster"),
        (lambda row, winner: winner == BASELINE, "oneDNN's kernel for this shape is faster"),
        (lambda row, winner: True, "not explained yet"),
    ]


def losses(results: Results) -> dict[str, Any]:
    """Return where the faster of jit-tiled and a plan is slower than the fastest of all others, by the time lost.

    Not jit-winograd, whose rounding errors are larger: it is no rival, and neither is it ours.
    """
    found, close, why = [], 0, causes(results)
    by_work: dict[Any, list[Row]] = defaultdict(list)
    for row in results.rows:
        if row.group in RACED and row.device == "cpu":
            by_work[row.work_key].append(row)
    for rows in by_work.values():
        rows.sort(key=lambda row: (bool(row.flags), row.seconds))
        mine = next((row for row in rows if row.variant in (OURS, PLAN)), None)
        best = next((row for row in rows if row.variant not in (OURS, PLAN, "jit-winograd") and not row.flags), None)
        if mine is None or best is None or best.seconds >= mine.seconds:
            continue
        factor = results.ratio(best, mine)
        if mine.flags or level(factor, mine.noise):
            close += 1
            continue
        found.append(
            {
                "work": mine.work,
                "quantity": mine.quantity,
                "cores": cores(mine.threads),
                "lost": mine.seconds - best.seconds,
                "through": mine.variant,
                "winner": named(best.variant),
                "ours": mine.seconds,
                "theirs": best.seconds,
                "ratio": times(factor.middle),
                "between": f"{ratio(factor.low)}–{ratio(factor.high)}" if factor.known else "",
                "why": next(words for fits, words in why if fits(mine, best.variant)),
            }
        )
    found.sort(key=lambda line: -line["lost"])
    large = [line for line in found if line["ours"] >= SMALL]
    small = [line for line in found if line["ours"] < SMALL]
    for line in large:
        line["width"] = 100 * line["lost"] / large[0]["lost"]
    return {"large": large, "small": small, "close": close, "sum": sum(line["lost"] for line in small)}


def models(results: Results) -> dict[str, Any]:
    """Return whole models by engine: a line a model, quantity and number of cores."""
    rows = results.pick(group="models")
    order = [OURS, "jit-winograd", PLAN, BASELINE, *ENGINES[1:], "vector"]
    columns = [name for name in order if any(row.variant == name for row in rows)]
    lines = []
    for key in dict.fromkeys((row.work, row.quantity, row.threads) for row in rows):
        found = {row.variant: row for row in rows if (row.work, row.quantity, row.threads) == key}
        best = min((row.seconds for row in found.values() if not row.flags), default=math.nan)
        cells = [
            {
                "time": seconds(found[name].seconds),
                "ratio": _shown_ratio(found[name]),
                "best": found[name].seconds == best,
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
    return "" if row.ratio is None else times(row.ratio.middle)


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
                next((seconds(row.seconds, 2) for row in rows if (row.work, row.variant) == (work, name)), "–")
                for name in names
            ],
        }
        for work in dict.fromkeys(row.work for row in rows)
    ]
    return {"columns": names, "lines": lines}


def correctness(results: Results) -> dict[str, Any]:
    """Return the study's MSE table in float32: a line a layer of the network, a column a variant."""
    checks = [each for each in results.digits if each["dtype"] == "float32"]
    columns = [name for name in results.sorted_variants({each["variant"] for each in checks}) if name != BASELINE]
    cells: dict[tuple[str, str], dict[str, Any]] = {}
    for each in checks:
        cell = cells.setdefault((each["case"], each["variant"]), {"used": 0.0, "mse": 0.0, "ok": True})
        cell["used"] = max(cell["used"], each["bound_used"])
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
    return {"columns": columns, "lines": lines, "cases": cases}


def trainings(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return a line for each variant and data set: mean accuracy over seeds with its 95 % interval."""
    lots: dict[tuple[str, str, int], list[dict[str, Any]]] = defaultdict(list)
    for run in runs:
        lots[run["config"]["data"], trained_through(run), len(run["epochs"])].append(run)
    lines = []
    for (data, variant, epochs), found in lots.items():
        accuracies = [run["epochs"][-1]["accuracy"] for run in found if run["epochs"][-1]["accuracy"] is not None]
        took = statistics.median(epoch["seconds"] for run in found for epoch in run["epochs"])
        lines.append(
            {
                "data": data,
                "variant": variant,
                "epochs": epochs,
                "seeds": len(found),
                "images": f"{found[0]['images']:,}",
                "device": found[0]["config"].get("device", "cpu"),
                "epoch": seconds(took) + (", estimated" if found[0]["estimated"] else ""),
                "accuracy": _accuracy(accuracies),
            }
        )
    return lines


def _accuracy(values: list[float]) -> str:
    """The mean with its interval over seeds (Student's t)."""
    if not values:
        return "–"
    mean = statistics.mean(values)
    if len(values) < 2:
        return f"{100 * mean:.2f} %"
    quantile = {2: 12.7, 3: 4.30, 4: 3.18, 5: 2.78}.get(len(values), 2.0)
    half = quantile * statistics.stdev(values) / math.sqrt(len(values))
    return f"{100 * mean:.2f} ± {100 * half:.2f} %"


def _homework(results: Results) -> dict[str, Any]:
    found = {row.variant: row.seconds for row in results.pick(group="network", work="forward, 1", threads=1)}
    rows = [{"what": what, "then": seconds(then), "now": seconds(found.get(name))} for what, then, name in HOMEWORK]
    rows += [
        {"what": f"{named(name)}, one image", "then": "–", "now": seconds(found[name])}
        for name in ("jit", OURS, PLAN, BASELINE)
        if name in found
    ]
    both = {"interpreted", "vector"} <= found.keys()
    return {
        "rows": rows,
        "then": digits(86.67 / 0.045, 4),
        "now": digits(found["interpreted"] / found["vector"], 2) if both else "",
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
            "rate": digits((row.flops or row.bytes) / row.seconds / 1e9, 3),
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
