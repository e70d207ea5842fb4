"""The page's charts: Altair, drawn as SVG, so that they need no script; colours are the page's own, light and dark."""

import math
import re
from collections import defaultdict
from typing import Any

import altair as alt
import pandas as pd
import vl_convert
from markupsafe import Markup

from jitconv.report.read import BASELINE, OURS, PLAN, Results, Row, trained_through
from jitconv.report.words import named

SANS = "system-ui, -apple-system, Segoe UI, Noto Sans, DejaVu Sans, sans-serif"
INK, SOFT, LINE, ACCENT, BAR, PAPER = (f"var(--{name})" for name in ("ink", "soft", "line", "accent", "bar", "paper"))
SINGLE_LAYERS = ("layers", "products", "resnet")
AXES = {"batch": "images", "image": "pixels a side", "channels": "channels in", "kernel": "kernel side"}
BASE = "conv 8→16 5×5 at 28×28, 16"  # where the axes of the scaling rows meet
BASE_SIZES = {"batch": 16, "channels": 8, "kernel": 5, "image": 28}


def charts(results: Results) -> dict[str, Any]:
    """Return each chart as SVG by its name in the template; "" where there is nothing to draw."""
    return {
        "roofline": _svg(
            _roofline(results), "Roofline of one core: rate of each work over its operations for each byte"
        ),
        "shares": _svg(_shares(results), "Share of single works at least p times as fast as torch, over p"),
        "scaling": [_svg(chart, f"Rate over {axis}") for axis, chart in _scaling(results)],
        "batches": _svg(_batches(results), "Time of an image over images at once"),
        "training": _svg(_training(results.trainings), "Test accuracy over epochs"),
    }


def _svg(chart: Any, label: str) -> Markup:
    if chart is None:
        return Markup("")
    styled = (
        chart.configure(font=SANS, background="transparent", padding={"left": 2, "right": 2, "top": 4, "bottom": 2})
        .configure_view(stroke=None)
        .configure_axis(
            gridColor=LINE,
            domainColor=SOFT,
            tickColor=SOFT,
            labelColor=INK,
            titleColor=SOFT,
            labelFontSize=11,
            titleFontSize=11,
            titleFontWeight="normal",
        )
        .configure_title(color=INK, fontSize=12, anchor="start")
    )
    drawn = vl_convert.vegalite_to_svg(styled.to_dict())
    head, _, rest = drawn.partition(">")
    head = re.sub(r' (role|aria-label)="[^"]*"', "", head)
    rest = re.sub(r' (role|aria-[a-z]+|data-role)="[^"]*"', "", rest)  # one picture, with one name
    prefix = "".join(word[0] for word in label.split())
    rest = re.sub(r'(id="|url\(#)', rf"\1{prefix}-", rest)  # ids are the page's, not the chart's
    return Markup(f'{head} role="img" aria-label="{label}">{rest}')


def _kind(variant: str) -> str:
    return variant if variant in (OURS, BASELINE) else "others"


def _points(results: Results) -> list[dict[str, Any]]:
    found = []
    for row in results.rows:
        wide = (row.group == "layers" and row.batch == 64) or row.group in ("resnet", "products")
        if wide and row.quantity == "forward" and row.threads == 1 and row.flops and row.bytes:
            found.append(
                {
                    "work": row.work,
                    "variant": row.variant,
                    "kind": _kind(row.variant),
                    "label": _short(row),
                    "intensity": row.flops / row.bytes,
                    "rate": row.flops / row.seconds / 1e9,
                }
            )
    return found


def _short(row: Row) -> str:
    words = str(row.work).removeprefix("product ").removeprefix("ResNet ").rpartition(",")[0] or str(row.work)
    return words.removeprefix("product ").partition(" at ")[0]


def ceilings(results: Results) -> dict[str, float]:
    """Return what one core can do at most: multiply-adds in FLOP/s, copies in bytes/s by where the arrays lie."""
    found = {"multiply-adds": results.peak()}
    for row in results.pick(quantity="bandwidth", device="cpu", threads=1):
        found[row.work] = row.bytes / min(row.samples)
    return found


def above(results: Results) -> list[str]:
    """Return which points lie above the peak: what is not computed (products with padding) counts as done."""
    peak = results.peak() / 1e9
    return [f"{named(each['variant'])}, {each['work']}" for each in _points(results) if each["rate"] > peak]


def _roofline(results: Results) -> Any:
    points, limits = _points(results), ceilings(results)
    if not points or math.isnan(limits["multiply-adds"]):
        return None
    peak = limits.pop("multiply-adds") / 1e9
    low, high = 1.0, 800.0
    lines = []
    for where, rate in limits.items():
        corner = peak / (rate / 1e9)
        at = [low, *([corner] if low < corner < high else []), high]
        lines += [{"limit": where, "intensity": x, "rate": min(peak, x * rate / 1e9)} for x in at]
    frame = pd.DataFrame(points)
    stems = frame.groupby(["work", "label", "intensity"], as_index=False).agg(low=("rate", "min"), high=("rate", "max"))
    x = alt.X(
        "intensity:Q",
        scale=alt.Scale(type="log", domain=[low, high]),
        title="operations for each byte of arguments and results",
        axis=alt.Axis(values=[1, 10, 100, 500], format="d", grid=False),
    )
    y = alt.Y(
        "rate:Q",
        scale=alt.Scale(type="log", domainMin=1),
        title="GFLOP/s",
        axis=alt.Axis(values=[1, 10, 100], format="d"),
    )
    stem = alt.Chart(stems).mark_rule(color=BAR).encode(x=x, y=alt.Y("low:Q", scale=alt.Scale(type="log")), y2="high:Q")
    text = _labels(stems)
    names = (
        alt.Chart(text)
        .mark_text(fontSize=10, color=SOFT, align="left", dx=3)
        .encode(x="intensity:Q", y=alt.Y("at:Q", scale=alt.Scale(type="log")), text="label:N")
    )
    kinds = [OURS, BASELINE, "others"]
    dots = (
        alt.Chart(frame)
        .mark_point(filled=True, size=55, opacity=1, strokeWidth=1.4)
        .encode(
            x=x,
            y=y,
            fill=alt.Fill(
                "kind:N",
                scale=alt.Scale(domain=kinds, range=[ACCENT, PAPER, BAR]),
                legend=alt.Legend(orient="top", title=None, labelColor=INK),
            ),
            stroke=alt.Stroke("kind:N", scale=alt.Scale(domain=kinds, range=[ACCENT, INK, BAR]), legend=None),
        )
    )
    layers = [stem, names, dots]
    if lines:
        roof = (
            alt.Chart(pd.DataFrame(lines))
            .mark_line(color=INK, strokeWidth=1.6)
            .encode(x=x, y=y, detail="limit:N", strokeDash=alt.StrokeDash("limit:N", legend=None))
        )
        layers = [roof, *layers]
        ends = [
            {"intensity": low, "rate": rate / 1e9, "label": f"{where} {rate / 1e9:.0f} GB/s"}
            for where, rate in limits.items()
        ]
        layers.append(
            alt.Chart(pd.DataFrame(ends))
            .mark_text(align="left", dx=6, dy=-9, fontSize=10, color=INK)
            .encode(x=x, y=y, text="label:N")
        )
    top = [{"intensity": high, "rate": peak, "label": f"peak {peak:.0f} GFLOP/s"}]
    layers.append(
        alt.Chart(pd.DataFrame(top))
        .mark_text(align="right", dy=-8, fontSize=11, color=INK)
        .encode(x=x, y=y, text="label:N")
    )
    return alt.layer(*layers).properties(width=1040, height=380)


def _labels(stems: pd.DataFrame) -> pd.DataFrame:
    """Below each stem, moved down until it is free of those before it (in steps of a line, on the log axis)."""
    placed: list[tuple[float, float]] = []
    rows = []
    for each in stems.sort_values("intensity").itertuples():
        x, y = math.log(float(each.intensity)), math.log(float(each.low)) - 0.15  # type: ignore[arg-type]
        while any(abs(x - a) < 0.75 and abs(y - b) < 0.19 for a, b in placed):
            y -= 0.19
        placed.append((x, y))
        rows.append({"intensity": each.intensity, "at": max(1.05, math.exp(y)), "label": each.label})
    return pd.DataFrame(rows)


def _shares(results: Results) -> Any:
    """A curve over p instead of a mean, which a few large ratios would make."""
    rows = []
    for threads in results.lanes:
        ratios = sorted(
            row.ratio.middle
            for row in results.pick(variant=OURS, threads=threads)
            if row.group in SINGLE_LAYERS and row.ratio is not None and not row.flags
        )
        label = "one core" if threads == 1 else f"{threads} cores"
        for i, value in enumerate(ratios):
            rows.append({"p": min(32, max(0.125, value)), "share": 1 - i / len(ratios), "cores": label})
    if not rows:
        return None
    frame = pd.DataFrame(rows)
    kinds = list(dict.fromkeys(frame["cores"]))
    line = (
        alt.Chart(frame)
        .mark_line(interpolate="step-before", strokeWidth=2)
        .encode(
            x=alt.X(
                "p:Q",
                scale=alt.Scale(type="log", domain=[0.125, 32]),
                title="at least this many times torch's speed",
                axis=alt.Axis(values=[0.25, 0.5, 1, 2, 4, 8, 16, 32], labelExpr="datum.value + '×'", grid=False),
            ),
            y=alt.Y(
                "share:Q",
                title="share of works",
                axis=alt.Axis(format="%", tickCount=5),
                scale=alt.Scale(domain=[0, 1]),
            ),
            color=alt.Color(
                "cores:N",
                scale=alt.Scale(domain=kinds, range=[ACCENT, SOFT, BAR][: len(kinds)]),
                legend=alt.Legend(orient="top", title=None, labelColor=INK),
            ),
        )
    )
    even = alt.Chart(pd.DataFrame({"p": [1]})).mark_rule(color=SOFT, strokeDash=[3, 3]).encode(x="p:Q")
    return (even + line).properties(width=330, height=220)


def _lines(frame: pd.DataFrame, x: alt.X, y: alt.Y, title: str, width: int = 300) -> Any:
    """Lines with their names at their ends, pushed apart."""
    ends = frame.sort_values("x").groupby("name", as_index=False).last().sort_values("y", ascending=False)
    span = max(1e-9, math.log(frame["y"].max() / max(1e-9, frame["y"].min())))
    shown, last = [], math.inf
    for each in ends.itertuples():
        last = min(math.log(float(each.y)), last - 0.075 * span)  # type: ignore[arg-type]
        shown.append({"x": each.x, "y": math.exp(last), "name": each.name, "mine": each.mine})
    colour = alt.condition("datum.mine", alt.value(ACCENT), alt.value(SOFT))
    line = (
        alt.Chart(frame)
        .mark_line(strokeWidth=1.8, point={"size": 18, "filled": True})
        .encode(
            x=x,
            y=y,
            detail="name:N",
            color=alt.Color("mine:N", scale=alt.Scale(domain=[True, False], range=[ACCENT, SOFT]), legend=None),
        )
    )
    text = (
        alt.Chart(pd.DataFrame(shown))
        .mark_text(align="left", dx=7, fontSize=11)
        .encode(x=x, y=y, text="name:N", color=colour)
    )
    return (line + text).properties(width=width, height=190, title=title)


def _scaling(results: Results) -> list[tuple[str, Any]]:
    rows = results.pick(group="scaling", quantity="forward", threads=1)
    panels = []
    for axis, words in AXES.items():
        of_axis = [(row.size, row) for row in rows if row.axis == axis]
        if axis != "batch" and not any(size == BASE_SIZES[axis] for size, _ in of_axis):
            of_axis += [(BASE_SIZES[axis], row) for row in rows if row.work == BASE]
        found = [
            {"x": size, "y": row.flops / row.seconds / 1e9, "name": named(row.variant), "mine": row.variant == OURS}
            for size, row in of_axis
        ]
        if found:
            values = sorted({each["x"] for each in found})
            x = alt.X(
                "x:Q",
                scale=alt.Scale(type="log", base=2),
                title=words,
                axis=alt.Axis(values=values, format="d", grid=False),
            )
            y = alt.Y("y:Q", scale=alt.Scale(type="log"), title="GFLOP/s", axis=alt.Axis(tickCount=4, format="~g"))
            panels.append((words, _lines(pd.DataFrame(found), x, y, f"over {words}", 220)))
    return panels


def _batches(results: Results) -> Any:
    rows = [row for row in results.rows if row.layer == "network" and row.quantity == "forward" and row.threads == 1]
    found = [
        {"x": row.batch, "y": row.seconds / row.batch * 1e6, "name": named(row.variant), "mine": row.variant == OURS}
        for row in rows
        if row.variant in (OURS, PLAN, BASELINE)
    ]
    if not found:
        return None
    x = alt.X(
        "x:Q",
        scale=alt.Scale(type="log", base=2),
        title="images at once",
        axis=alt.Axis(values=[1, 4, 16, 64, 256, 1024, 4096], format="d", grid=False),
    )
    y = alt.Y("y:Q", scale=alt.Scale(type="log"), title="µs an image", axis=alt.Axis(tickCount=5, format="~g"))
    return _lines(pd.DataFrame(found), x, y, "the whole network, one core", 220)


def _training(trainings: list[dict[str, Any]]) -> Any:
    """Of the data set with most images: the mean over seeds after each epoch."""
    whole = [run for run in trainings if len(run["epochs"]) > 1 and run["epochs"][-1]["accuracy"] is not None]
    most = max((run["images"] for run in whole), default=0)
    found: dict[tuple[str, int], list[float]] = defaultdict(list)
    for run in whole:
        if run["images"] == most:
            for epoch in run["epochs"]:
                found[trained_through(run), epoch["epoch"]].append(epoch["accuracy"])
    if not found:
        return None
    frame = pd.DataFrame(
        {"x": epoch, "y": sum(values) / len(values), "name": variant, "mine": variant == OURS}
        for (variant, epoch), values in found.items()
    )
    x = alt.X("x:Q", title="epoch", axis=alt.Axis(tickMinStep=1, grid=False))
    y = alt.Y("y:Q", title="test accuracy", scale=alt.Scale(zero=False), axis=alt.Axis(format="%"))
    return _lines(frame, x, y, "")
