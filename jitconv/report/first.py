"""The first screen: the answer in three parts, the hero staircase, the ranking of engines, and how sure it is."""

import math
from typing import Any
from urllib.parse import quote

from markupsafe import Markup, escape

from jitconv.report.read import BASELINE, OURS, PLAN, Results, Row, level, marked
from jitconv.report.words import (
    FLAG_SAYS,
    FLAGGED,
    between,
    colour,
    cores,
    digits,
    lists,
    named,
    seconds,
    times,
)

ENGINES = ("torch", "torch.compile", "onnxruntime", "openvino", "jax")  # those that ours is ranked against
WORKS = (("forward, 1", "1 image"), ("forward, 64", "64 images"), ("forward, 1000", "1000 images"))
STEP = ("training step, 64", "training step, 64")
SINGLE = ("layers", "products", "resnet", "scaling")  # groups of rows of single layers
STAIRS = (  # of the hero, slowest to fastest: variant, what changed
    ("interpreted", "every number a tensor, as in the homework"),
    ("interpreted-numpy", "the same loops on NumPy arrays"),
    ("jit", "compiled"),
    ("jit-parallel", "shared out, here to one core"),
    ("jit-static", "told its sizes, a row at a time"),
    (OURS, "register tiles by hand"),
    (PLAN, "the whole network as one call"),
)


def ours(results: Results, work: str, threads: int) -> Row | None:
    """Return our best row of a whole-network work, the plan's or jit-tiled's: the faster of those without a flag."""
    rows = [results.one(group="network", work=work, variant=name, threads=threads) for name in (OURS, PLAN)]
    return min((row for row in rows if row), key=lambda row: (bool(row.flags), row.seconds), default=None)


def best_other(results: Results, work: str, threads: int) -> Row | None:
    """Return the fastest other engine's row; a flagged one too: to leave that out could only flatter us."""
    rows = [results.one(group="network", work=work, variant=name, threads=threads) for name in ENGINES]
    return min((row for row in rows if row), key=lambda row: row.seconds, default=None)


def answer(results: Results) -> list[Markup]:
    """Return what came out in three parts, or fewer where it was not measured; what ‡ says where it first stands."""
    parts = [part for part in (_climb(results), _race(results), _layers(results)) if part]
    first = next((i for i, part in enumerate(parts) if FLAGGED in part), None)
    if first is not None:
        parts[first] += Markup(" ") + FLAG_SAYS
    return parts


def _climb(results: Results) -> Markup:
    found = {row.variant: row for row in results.pick(group="network", work="forward, 1", threads=1)}
    if not {"interpreted", "jit", OURS} <= found.keys():
        return Markup("")
    time = {name: row.shown for name, row in found.items()}
    told = ""
    if "jit-static" in time:
        told = f", and <b>{time['jit-static']}</b> in loops along rows that are told every size"
    torchs = f"; torch takes {time[BASELINE]}" if BASELINE in time else ""
    plan = f" Planned as one call it takes <b>{time[PLAN]}</b>." if PLAN in time else ""
    return Markup(
        f"One image through the network takes {time['interpreted']} in plain loops as Python interprets them, "
        f"<b>{time['jit']}</b> in the same loops compiled{told}{torchs}. By hand, in tiles of vector registers, which "
        f"are no plain loops any more, it takes <b>{time[OURS]}</b>.{plan}"
    )


def _race(results: Results) -> Markup:
    by_engine: dict[str, list[str]] = {}
    for work, title in (*WORKS, STEP):
        mine, other = ours(results, work, 1), best_other(results, work, 1)
        if mine is None or other is None:
            continue
        ratio = results.ratio(other, mine)
        interval = between(ratio)[1]
        factor = f"<b>{times(ratio.middle)}{marked(other, mine)}</b>" + " our time" * (not by_engine)
        words = f"{'a training step' if title == STEP[1] else title} at {factor}{f' ({interval})' * bool(interval)}"
        by_engine.setdefault(other.variant, []).append(words)
    if not by_engine:
        return Markup("")
    parts = [f"{escape(named(engine))} for {lists(works)}" for engine, works in by_engine.items()]
    others = {row.variant for row in results.pick(group="network") if row.variant in ENGINES}
    missing = [named(name) for name in ENGINES if name not in others]
    note = f" Not in this run: {', '.join(missing)}." if missing else ""
    return Markup(f"On one core the fastest other engine is {', and '.join(parts)}.{note}")


def _layers(results: Results) -> Markup:
    rows = [row for row in results.pick(variant=OURS, device="cpu") if row.group in SINGLE]
    rows = [row for row in rows if row.ratio is not None]
    if not rows:
        return Markup("")
    flagged = [row for row in rows if row.ratio_flags]
    tied = [row for row in rows if row.tie and not row.ratio_flags]
    won = [row for row in rows if not (row.tie or row.ratio_flags) and row.ratio and row.ratio.middle > 1]
    lost = [row for row in rows if not (row.tie or row.ratio_flags) and row not in won]
    small = sum(row.seconds < 1e-4 for row in lost)
    left_out = f"; {len(flagged)} are flagged {FLAGGED} and count for neither" if flagged else ""
    ours_checked = [each for each in results.cases if each["variant"] != BASELINE]
    checked, wrong = (sum(each[name] for each in ours_checked) for name in ("results", "wrong"))
    proof = (
        f" Of {checked:,} results of layers, forward and backward, that were checked against torch, "
        f"{wrong or 'none'} lie outside their rounding bounds."
        if checked
        else ""
    )
    gpu = "" if results.pick(device="cuda") else " No CUDA variant was ever run on a device."
    return Markup(
        f"Of {len(rows)} timings of single layers {OURS} wins <b>{len(won)}</b> against torch and loses "
        f"<b>{len(lost)}</b>, {small} of them calls below 0.1 ms; {len(tied)} are too close to tell{left_out}."
        f"{proof}{gpu}"
    )


def hero(results: Results) -> dict[str, Any]:
    """Return the staircase: each bar begins where the rung before ended, so its length is a factor on the log axis."""
    rows = {row.variant: row for row in results.pick(group="network", work="forward, 1", threads=1)}
    rungs_here = [name for name, _ in STAIRS if name in rows]
    if not rungs_here:
        return {}
    engines = [name for name in ("vector", *ENGINES) if name in rows]
    every = [rows[name].seconds for name in (*rungs_here, *engines)]
    slow, fast = math.log(max(every)) + 0.7, math.log(min(every)) - 2.4

    def place(value: float) -> float:
        return 100 * (slow - math.log(value)) / (slow - fast)

    rungs: list[dict[str, Any]] = []
    before: Row | None = None
    for name, say in STAIRS:
        if name not in rows:
            rungs.append(
                {
                    "name": named(name),
                    "missing": True,
                    "ours": name in (OURS, PLAN),
                    "colour": colour(name),
                    "right": place(before.seconds) if before else 5,
                }
            )
            continue
        row = rows[name]
        left = place(before.seconds) if before else place(row.seconds)
        right = place(row.seconds)
        rungs.append(
            {
                "name": named(name),
                "left": min(left, right),
                "right": max(left, right),
                "end": right,
                "time": seconds(row.seconds),
                "factor": _factor(results, before, row) if before else "",
                "flags": ", ".join(row.flags),
                "colour": colour(name),
                "say": say,
                "missing": False,
                "ours": name in (OURS, PLAN),
                "wide": abs(right - left) > 8,
                "words": "right" if right < 55 else "in" if abs(right - left) > 35 else "left",
            }
        )
        before = row
    order = sorted(engines, key=lambda name: -rows[name].seconds)
    best = min(rows[name].seconds for name in (OURS, PLAN) if name in rows) if {OURS, PLAN} & rows.keys() else None
    return {
        "rungs": rungs,
        "ticks": [
            {
                "name": named(n),
                "at": place(rows[n].seconds),
                "time": seconds(rows[n].seconds),
                "flags": ", ".join(rows[n].flags),
                "left": best is not None and rows[n].seconds > best,
            }
            for n in order
        ],
        "missing": [named(name) for name in ENGINES if name not in rows],
        "axis": [(place(10.0**p), seconds(10.0**p, 1)) for p in range(2, -6, -1) if fast < math.log(10.0**p) < slow],
        "ours": None if best is None else place(best),
    }


def _factor(results: Results, before: Row, row: Row) -> str:
    """How many times as fast as the rung before, and whether that can be told."""
    factor, mark = results.ratio(before, row), marked(before, row)
    return times(factor.middle) + (mark or ", even" * (factor.known and level(factor, row.noise)))


def link(row: Row) -> str:
    """Return the address of a row in the table of layers and variants, as page.js reads it."""
    return "#" + quote(f"row={row.threads}t {row.name}".replace(" ", "_"), safe="")


def ranking(results: Results) -> list[dict[str, Any]]:
    """Return for each number of cores and work the engines, the fastest first; flagged rows last, without a rank."""
    lanes = []
    for threads in results.lanes:
        columns = [_column(results, work, title, threads) for work, title in (*WORKS, STEP)]
        if any(column["lines"] for column in columns):
            lanes.append({"threads": threads, "label": cores(threads), "columns": columns})
    return lanes


def _column(results: Results, work: str, title: str, threads: int) -> dict[str, Any]:
    names = (OURS, PLAN, *ENGINES)
    rows = [results.one(group="network", work=work, variant=name, threads=threads) for name in names]
    found = sorted((row for row in rows if row), key=lambda row: (bool(row.flags), row.seconds))
    mine = ours(results, work, threads)
    most = max((row.seconds for row in found), default=1.0)
    lines = []
    for row in found:
        factor = None if mine is None or row is mine else results.ratio(row, mine)
        even = factor is not None and level(factor, results.noise.get(threads, 0.0))
        lines.append(
            {
                "name": named(row.variant),
                "time": seconds(row.seconds),
                "ours": row.variant in (OURS, PLAN),
                "share": 100 * row.seconds / most,
                "flags": ", ".join(row.flags),
                "even": even,
                "factor": "" if factor is None else times(factor.middle) + marked(mine, row),
                "between": "" if factor is None else between(factor)[1],
                "link": link(row),
                "colour": colour(row.variant),
            }
        )
    absent = [name for name in names if name not in {row.variant for row in found}]
    absent = [name for name in absent if not (work == STEP[0] and name in ("onnxruntime", "openvino", PLAN))]
    return {"title": title, "lines": lines, "missing": ", ".join(map(named, absent))}


def doubt(results: Results) -> dict[str, Any]:
    """Return what the run says of its own noise."""
    word, why = results.verdict()
    machine = results.machines[0] if results.machines else {}
    flagged = [row for row in results.rows if row.flags]
    return {
        "verdict": word,
        "why": why,
        "machine": f"{machine.get('cpu', '?')} ({machine.get('numba_target', '?')}), {machine.get('cores', '?')} cores",
        "passes": results.passes,
        "rows": len(results.rows),
        "flagged": len(flagged),
        "date": results.date,
        "commit": str(results.commit.get("id", ""))[:10],
        "dirty": bool(results.commit.get("dirty")),
        "suite": results.suite,
        "spread": lists([f"{digits(100 * math.sqrt(v), 2)} % on {cores(n)}" for n, v in results.spread.items()]),
        "lanes": lists([cores(n) for n in results.lanes]),
    }


def plain(text: Markup) -> str:
    """Return a sentence without its marks."""
    return Markup(text).striptags()
