"""What each section of the page shows, as plain lists for the template."""

from typing import Any

import numpy as np
import pandas as pd

from jitconv.report.findings import OURS, epoch_seconds
from jitconv.report.goals import goals
from jitconv.report.read import Results, peak

HOMEWORK: dict[str, list[tuple[Any, ...]]] = {
    "rows": [
        ("interpreted loops, one image", "86.67 s", ("interpreted", "forward")),
        ("vector form, one image", "0.045 s", ("vector", "forward")),
    ],
    "mistakes": [
        (
            "convolution",
            "1.5e-15",
            "overwrote its input channels: right for one channel only",
            "sums over every channel",
        ),
        ("im2col", "—", "read channel 0 only", "columns of length C_in·K_h·K_w"),
        ("pooling", "0.138", "took wrong windows", "equal to torch bit for bit, with indices"),
        ("dense layer", "4.0e-14", "was checked against itself", "checked against torch, in float64 too"),
    ],
}


RACED = ("layers", "network", "products", "resnet", "models")  # groups of rows that ours may lose
UNITS = (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6))


def seconds(value: float) -> str:
    """Return a time with three digits and its unit."""
    if value is None or np.isnan(value):
        return "—"
    unit, size = next((each for each in UNITS if value >= each[1]), UNITS[-1])
    return f"{value / size:.3g} {unit}"


def times(value: float) -> str:
    """Return a ratio with two or three digits."""
    return "—" if value is None or np.isnan(value) else f"{value:.3g}×" if value >= 10 else f"{value:.2f}×"


def sections(results: Results) -> dict[str, Any]:
    """Return every section's content by its name in the template; empty where nothing was measured."""
    table = results.times
    return {
        "machines": _machines(results.machines),
        "losses": _losses(table),
        "goals": goals(results),
        "layers": [_matrix(table, "layers", quantity, 1) for quantity in ("forward", "backward", "weight gradient")],
        "network": _comparison(table, "network"),
        "products": _comparison(table, "products"),
        "resnet": _comparison(table, "resnet"),
        "models": _comparison(table, "models"),
        "overhead": _comparison(table, "overhead"),
        "peaks": _peaks(table),
        "compiling": table[table["group"] == "compiling"].pipe(_records),
        "gpu": _gpu(table[table["device"] == "cuda"]),
        "digits": _grid(results.digits, "case"),
        "cases": _grid(results.cases, "layer"),
        "trainings": [_training(run) for run in results.trainings],
        "homework": _homework(table),
        "borrowed": _borrowed(table),
        "gaps": [*results.gaps, *_missing(results)],
        "ours": OURS,
    }


def _records(table: pd.DataFrame) -> list[dict[str, Any]]:
    return table.to_dict("records")  # type: ignore[return-value]


def _machines(machines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One entry for each machine, with the files that were measured on it."""
    known: dict[tuple[str, Any], dict[str, Any]] = {}
    for machine in machines:
        entry = known.setdefault((machine["cpu"], machine["cores"]), {**machine, "files": [], "loads": []})
        entry["files"].append(machine["file"])
        entry["loads"].append(machine["load"])
    return list(known.values())


def _line(row: Any, table: pd.DataFrame) -> dict[str, Any]:
    rate = row["flops"] / row["seconds"] if row["flops"] else np.nan
    share = rate / peak(table, row["threads"])
    return {**row, "gflops": rate / 1e9, "share": share}


def _losses(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Where the best variant is slower than torch or another engine, worst first."""
    best = table[(table["variant"] == OURS) & table["group"].isin(RACED)]
    found = []
    for row in best.pipe(_records):
        same = table[(table["variant"] != OURS) & (table["seconds"] < row["seconds"])]
        for name in ("group", "work", "quantity", "threads", "device"):
            same = same[same[name] == row[name]]
        if len(same):
            winner = same.sort_values("seconds").iloc[0]
            found.append(
                {
                    **row,
                    "winner": winner["variant"],
                    "theirs": winner["seconds"],
                    "lost": winner["seconds"] / row["seconds"],
                }
            )
    return sorted(found, key=lambda line: line["lost"])


def _matrix(table: pd.DataFrame, group: str, quantity: str, threads: int) -> dict[str, Any]:
    """Layers × variants: time, ratio and its interval, rate and share of the peak."""
    rows = table[(table["group"] == group) & (table["quantity"] == quantity) & (table["threads"] == threads)]
    variants = [name for name in ORDER if name in set(rows["variant"])]
    variants += sorted(set(rows["variant"]) - set(variants))
    works = rows.drop_duplicates("work").sort_values(["batch", "layer", "work"])["work"]
    cells = {(row["work"], row["variant"]): _line(row, table) for row in rows.pipe(_records)}
    lines = [{"work": work, "cells": [cells.get((work, variant)) for variant in variants]} for work in works]
    return {"title": quantity, "variants": variants, "lines": lines, "threads": threads}


ORDER = [
    "interpreted",
    "interpreted-numpy",
    "jit",
    "jit-parallel",
    "jit-tiled",
    "vector",
    "cuda",
    "cuda-tiled",
    "torch",
]


def _comparison(table: pd.DataFrame, group: str) -> list[dict[str, Any]]:
    """Every row of a group, its works together, the slowest first."""
    rows = table[table["group"] == group].sort_values(
        ["work", "quantity", "threads", "seconds"], ascending=[True, True, True, False]
    )
    return [_line(row, table) for row in _records(rows)]


def _gpu(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Every row of a GPU with its rates, and how much faster than torch's its own work there is."""
    rows = _records(table.sort_values(["layer", "batch", "work", "quantity", "kernel_seconds"]))
    torch = {(row["work"], row["quantity"]): row["kernel_seconds"] for row in rows if row["variant"] == "torch"}
    return [
        {**row, "kernel_ratio": torch.get((row["work"], row["quantity"]), np.nan) / row["kernel_seconds"]}
        | {"gflops": row["flops"] / row["kernel_seconds"] / 1e9, "gbytes": row["bytes"] / row["kernel_seconds"] / 1e9}
        for row in rows
    ]


def _peaks(table: pd.DataFrame) -> list[dict[str, Any]]:
    rows = table[table["layer"] == "machine"].sort_values(["quantity", "threads"])
    return [
        {"work": row["work"], "threads": row["threads"], "rate": (row["flops"] or row["bytes"]) / row["seconds"] / 1e9}
        | {"unit": "GFLOP/s" if row["flops"] else "GB/s"}
        for row in rows.pipe(_records)
    ]


def _grid(checks: pd.DataFrame, line: str) -> dict[str, Any]:
    """Checks as `line` × variant: in each cell the one that uses most of its bound, and how many there are."""
    if checks.empty:
        return {"variants": [], "lines": []}
    variants = [
        name for name in [*ORDER, *sorted(set(checks["variant"]) - set(ORDER))] if name in set(checks["variant"])
    ]
    cells: dict[Any, dict[Any, Any]] = {}
    for key, group in checks.groupby([line, "variant"], sort=False):
        worst = group.sort_values("bound_used").iloc[-1]
        cells[key] = worst.to_dict() | _counts(group)
    lines = [
        {"name": name, "cells": [cells.get((name, variant)) for variant in variants]} for name in checks[line].unique()
    ]
    return {"variants": variants, "lines": lines}


def _counts(group: pd.DataFrame) -> dict[str, int]:
    if "results" in group:
        return {"results": int(group["results"].sum()), "wrong": int(group["wrong"].sum())}
    return {"results": len(group), "wrong": int((~group["ok"]).sum())}


def _training(run: dict[str, Any]) -> dict[str, Any]:
    last = run["epochs"][-1]
    return {
        "variant": run["config"]["variant"],
        "data": run["config"]["data"],
        "epochs": len(run["epochs"]),
        "seconds": epoch_seconds(run),
        "estimated": run["estimated"],
        "images": run["config"]["limit"] or run["images"],
        "loss": last["loss"],
        "accuracy": last["accuracy"],
        "compiling": run["warmup_seconds"],
    }


def _homework(table: pd.DataFrame) -> dict[str, Any]:
    one = table[(table["layer"] == "network") & (table["batch"] == 1) & (table["threads"] == 1)]
    measured = dict(zip(zip(one["variant"], one["quantity"], strict=True), one["seconds"], strict=True))
    rows = [{"what": what, "then": then, "now": measured.get(key, np.nan)} for what, then, key in HOMEWORK["rows"]]
    others = ("interpreted-numpy", "jit", "jit-parallel", OURS, "torch")
    now = [measured.get((variant, "forward"), np.nan) for variant in others]
    rows += [
        {"what": f"{variant}, one image", "then": "—", "now": time} for variant, time in zip(others, now, strict=True)
    ]
    ratio = rows[0]["now"] / rows[1]["now"]
    return {"rows": rows, "ratio": ratio, "mistakes": HOMEWORK["mistakes"]}


def _borrowed(table: pd.DataFrame) -> list[dict[str, Any]]:
    found = table[table["borrows"].fillna("") != ""]
    return found.drop_duplicates(["variant", "layer", "borrows"])[["variant", "layer", "borrows"]].pipe(_records)


def _missing(results: Results) -> list[dict[str, str]]:
    """What the page would show had it been given the results."""
    have = {
        "benchmarks": not results.times.empty,
        "verification": not results.digits.empty,
        "training": bool(results.trainings),
    }
    return [
        {"row": name, "outcome": "missing", "why": "no such results were given"}
        for name, there in have.items()
        if not there
    ]
