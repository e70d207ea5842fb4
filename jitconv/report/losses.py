"""Where the faster of jit-tiled and a plan loses: how much, to what, and why."""

import math
from collections import defaultdict
from typing import Any

from jitconv.report.first import ENGINES, SINGLE, link
from jitconv.report.read import BASELINE, KEY, OURS, PLAN, WINOGRAD, Results, Row, level, marked
from jitconv.report.words import between, cores, digits, named, percent, times, work_of

RACED = (*SINGLE, "network", "models")  # groups of rows that ours may lose
SHORT_CALL = 1e-4  # seconds: losses of shorter calls are folded together
IN_TRAINING = "batch norms, and convolutions of few pixels, stay torch's in training"


def causes(results: Results) -> list[tuple[Any, str]]:
    """Return the table of causes: a test of our row and the winner, and a sentence; the first that fits is shown."""
    calls = {
        name: [row.seconds for row in results.pick(group="overhead", variant=name) if not row.flags]
        for name in (OURS, BASELINE)
    }
    cost = "a call costs more in Python than in C++ before it computes"
    if all(calls.values()):
        (a, b), (c, d) = ((1e6 * min(each), 1e6 * max(each)) for each in calls.values())
        cost = f"a call costs {digits(a, 2)} to {digits(b, 2)} µs before it computes, torch's {digits(c, 2)} "
        cost += f"to {digits(d, 2)}"
    return [
        (lambda row, winner: row.seconds < SHORT_CALL, cost),
        (
            lambda row, winner: winner not in ENGINES,
            "a lower rung fits this shape better than the kernel chosen for it",
        ),
        (
            lambda row, winner: row.variant == OURS and winner != BASELINE,
            "single layers against an engine that fuses the network",
        ),
        (lambda row, winner: _trains_a_model(row), IN_TRAINING),
        (lambda row, winner: _scales_worse(results, row, winner), "more cores help it less"),
        (lambda row, winner: row.variant == PLAN, "its kernels for some of these shapes are faster"),
        (lambda row, winner: winner == BASELINE, "oneDNN's kernel fits this shape better"),
        (lambda row, winner: True, "not explained yet"),
    ]


def _trains_a_model(row: Row) -> bool:
    return row.group == "models" and "step" in row.quantity


def _scales_worse(results: Results, row: Row, winner: str) -> bool:
    """Whether the winner gains more from several cores, so that less is lost, or nothing, on one."""
    where = {name: getattr(row, name) for name in KEY}
    ours, theirs, best = (
        results.one(**where | {"variant": name, "threads": threads})
        for name, threads in ((row.variant, 1), (winner, 1), (winner, row.threads))
    )
    if row.threads == 1 or ours is None or theirs is None or best is None or ours.flags or theirs.flags:
        return False
    return math.log(results.ratio(theirs, ours).middle / results.ratio(best, row).middle) > row.noise


def _shares(results: Results, theirs: Row, ours: Row) -> str:
    """How much of the peak either reaches, where operations are known; the time cannot say which of them is short."""
    peak = results.peak() * ours.threads
    if not ours.flops or math.isnan(peak):
        return ""
    shares = [row.flops / row.seconds / peak for row in (ours, theirs)]
    return f": {percent(shares[1])} of the peak, ours {percent(shares[0])}"


def losses(results: Results) -> dict[str, Any]:
    """Return where the faster of jit-tiled and a plan is slower than the fastest of all others, by the time lost.

    Not jit-winograd, whose rounding errors are larger: it is no rival, and neither is it ours. flagged: those that a
    flagged row has a part in. plans: works of which a plan is slower than jit-tiled's layers one by one.
    """
    found, flagged, plans, close, why = [], [], [], 0, causes(results)
    by_work: dict[Any, list[Row]] = defaultdict(list)
    for row in results.rows:
        if row.group in RACED and row.device == "cpu":
            by_work[row.work_key].append(row)
    for rows in by_work.values():
        rows.sort(key=lambda row: row.seconds)
        mine = next((row for row in rows if row.variant in (OURS, PLAN)), None)  # flagged or not: it is the faster
        rivals = [row for row in rows if row.variant not in (OURS, PLAN, *WINOGRAD)]
        if mine is None:
            continue
        plan, layers = (next((row for row in rows if row.variant == name), None) for name in (PLAN, OURS))
        if plan and layers and _slower(results, plan, layers) and not (plan.flags or layers.flags):
            reason = IN_TRAINING if _trains_a_model(plan) else "not explained yet"
            plans.append(_line(results, layers, plan, reason))
        best = next((row for row in rivals if not row.flags), None)
        if best is not None and best.seconds < mine.seconds and not mine.flags:
            if _slower(results, mine, best):
                reason = next(words for fits, words in why if fits(mine, best.variant))
                shares = _shares(results, best, mine) if mine.seconds >= SHORT_CALL else ""
                found.append(_line(results, best, mine, reason + shares))
                continue
            close += 1
        fastest = next(iter(rivals), None)
        if fastest is not None and (mine.flags or fastest.flags) and _slower(results, mine, fastest):
            flagged.append(_line(results, fastest, mine, ", ".join(dict.fromkeys((*mine.flags, *fastest.flags)))))
    for lines in (found, flagged, plans):
        lines.sort(key=lambda line: -line["lost"])
    large = [line for line in found if line["ours"] >= SHORT_CALL]
    small = [line for line in found if line["ours"] < SHORT_CALL]
    for lines in (large, plans):
        for line in lines:
            line["width"] = 100 * line["lost"] / lines[0]["lost"]
    lost = sum(line["lost"] for line in small)
    return {"large": large, "small": small, "flagged": flagged, "plans": plans, "close": close, "sum": lost}


def _slower(results: Results, mine: Row, other: Row) -> bool:
    """Whether the other row is faster, and that can be told."""
    return other.seconds < mine.seconds and not level(results.ratio(other, mine), mine.noise)


def _line(results: Results, best: Row, mine: Row, why: str) -> dict[str, Any]:
    factor = results.ratio(best, mine)
    return {
        "what": work_of(mine),
        "cores": cores(mine.threads),
        "lost": mine.seconds - best.seconds,
        "through": mine.variant,
        "winner": named(best.variant),
        "ours": mine.seconds,
        "ours_shown": mine.shown,
        "theirs": best.shown,
        "ratio": times(factor.middle) + marked(best, mine),
        "between": between(factor)[1],
        "why": why,
        "link": link(mine),
    }
