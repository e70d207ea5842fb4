"""The page's charts: Altair, drawn as SVG, so that they need no script; colours are the page's own, light and dark."""

import math
import re
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import altair as alt
import numpy as np
import pandas as pd
import vl_convert
from markupsafe import Markup, escape

from jitconv.report.read import BASELINE, OURS, PLAN, Results, Row, trained_through
from jitconv.report.roofline import roofline
from jitconv.report.words import ACCENT, BAR, INK, LINE, SOFT, colour, cores, data_set, digits, lists, named, seeds

SANS = "system-ui, -apple-system, Segoe UI, Noto Sans, DejaVu Sans, sans-serif"
SINGLE_LAYERS = ("layers", "products", "resnet")
AXES = {"batch": "images", "image": "pixels a side", "channels": "channels in", "kernel": "kernel side"}
BASE = "conv 8→16 5×5 at 28×28, 16"  # where the axes of the scaling rows meet
BASE_SIZES = {"batch": 16, "channels": 8, "kernel": 5, "image": 28}
WIDTH, HEIGHT, LABELS = 180, 170, 125  # pixels of a small chart, and right of it for the names of its lines


def charts(results: Results) -> dict[str, Any]:
    """Return each chart as SVG by its name in the template; "" where there is nothing to draw."""
    return {
        "roofline": _svg(
            roofline(results), "Roofline of one core: rate of each work over its operations for each byte"
        ),
        "shares": _svg(_shares(results), f"Share of single layers at least this many times as fast as torch: {OURS}"),
        "scaling": [_svg(chart, f"Scaling: {title}") for title, chart in _scaling(results)],
        "training": [_svg(chart, f"Test accuracy over epochs: {title}") for title, chart in _training(results)],
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
    prefix = re.sub(r"\W+", "-", label)
    rest = re.sub(r'(id="|url\(#)', rf"\1{prefix}-", rest)  # ids are the page's, not the chart's
    return Markup(f'{head} role="img" aria-label="{escape(label)}">{rest}')


def _shares(results: Results) -> Any:
    """A curve over p instead of a mean, which a few large ratios would make."""
    rows = []
    for threads in results.lanes:
        ratios = sorted(
            row.ratio.middle
            for row in results.pick(variant=OURS, threads=threads)
            if row.group in SINGLE_LAYERS and row.ratio is not None and not row.ratio_flags
        )
        for i, value in enumerate(ratios):
            rows.append({"p": min(32, max(0.125, value)), "share": 1 - i / len(ratios), "cores": cores(threads)})
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
                title=f"torch's time over {OURS}'s, at least",
                axis=alt.Axis(values=[0.25, 0.5, 1, 2, 4, 8, 16, 32], labelExpr="datum.value + '×'", grid=False),
            ),
            y=alt.Y(
                "share:Q",
                title="share of timings",
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


def _lines(
    points: Sequence[dict[str, Any]], title: str, over: str, up: str, log: bool, below: Sequence[str] = ()
) -> Any:
    """Lines in their variants' colours with their names at the ends; torch's is dashed.

    points: x, y and variant of each, with `low` and `high` of a band and a `note` behind the name if there are any.
    below: lines under the title.
    """
    kind: Any = "log" if log else "linear"
    xs = sorted({float(point["x"]) for point in points})
    ys = [point[name] for point in points for name in ("y", "low", "high") if not math.isnan(point.get(name, math.nan))]
    low, high = (min(ys) * 0.8, max(ys) * 1.25) if log else (min(ys) - 0.001, max(ys) + 0.001)
    ends = _ends(points, low, high, log)
    kinds = [end["variant"] for end in ends]

    def by_kind(channel: Any, values: list[Any]) -> Any:
        return channel("variant:N", scale=alt.Scale(type="ordinal", domain=kinds, range=values), legend=None)

    x = alt.X(
        "x:Q",
        scale=alt.Scale(type=kind, domain=[xs[0], xs[-1]], range=[0, WIDTH], nice=False),
        title=over,
        axis=alt.Axis(format="d", grid=False, titleAnchor="start", values=xs if log else alt.Undefined),
    )
    shown = alt.Axis(minExtent=38, format="~g", values=_ticks(low, high)) if log else alt.Axis(
        minExtent=38, format=".1%", tickCount=4
    )  # fmt: skip
    scale = alt.Scale(type=kind, domain=[low, high], nice=False)
    y = alt.Y("y:Q", scale=scale, title=up, axis=shown)
    paint = by_kind(alt.Color, [colour(kind) for kind in kinds])
    dash = by_kind(alt.StrokeDash, [[5, 3] if kind == BASELINE else [1, 0] for kind in kinds])
    width = by_kind(alt.StrokeWidth, [4 if kind == OURS else 1.8 for kind in kinds])  # one line may lie on another
    frame = pd.DataFrame(points)
    texts = alt.Chart(pd.DataFrame(ends)).mark_text(align="left", fontSize=11)
    layers = [
        alt.Chart(frame).mark_line().encode(x=x, y=y, color=paint, strokeDash=dash, strokeWidth=width),
        texts.encode(x=alt.X("x:Q", scale=None), y=alt.Y("y:Q", scale=None), text="name:N", color=paint),
    ]
    if log:
        layers.insert(1, alt.Chart(frame).mark_point(filled=True, size=22, opacity=1).encode(x=x, y=y, color=paint))
    if "low" in frame and frame["low"].notna().any():
        band = alt.Chart(frame.dropna()).mark_area(opacity=0.12)
        layers.insert(0, band.encode(x=x, y=alt.Y("low:Q", scale=scale), y2="high:Q", color=paint))
    heading = alt.TitleParams(title, subtitle=list(below), subtitleColor=SOFT, subtitleFontSize=10.5)
    return alt.layer(*layers).properties(width=WIDTH + LABELS, height=HEIGHT, title=heading)


def _ends(points: Sequence[dict[str, Any]], low: float, high: float, log: bool) -> list[dict[str, Any]]:
    """The names of the lines, in pixels right of their last points, pushed apart; the highest first."""
    last = {point["variant"]: point for point in sorted(points, key=lambda point: point["x"])}
    ends: list[dict[str, Any]] = []
    for variant, point in sorted(last.items(), key=lambda item: -item[1]["y"]):
        value = point["y"]
        place = HEIGHT * (math.log(high / value) / math.log(high / low) if log else (high - value) / (high - low))
        place = max(place, ends[-1]["y"] + 13) if ends else place
        ends.append({"variant": variant, "name": named(variant) + point.get("note", ""), "x": WIDTH + 8, "y": place})
    for i, end in enumerate(reversed(ends)):
        end["y"] = min(end["y"], HEIGHT - 13 * i)
    return ends


def _ticks(low: float, high: float) -> list[float]:
    """Powers of ten, with twos and fives between them where fewer than two fit."""
    tens = [10.0**power for power in range(-6, 7)]
    found = [ten for ten in tens if low <= ten <= high]
    return found if len(found) > 1 else [d * ten for ten in tens for d in (1, 2, 5) if low <= d * ten <= high]


def _growth(rows: Sequence[tuple[float, float]]) -> str:
    """The slope of log time over log size."""
    sizes, times = np.log(np.array(rows, dtype=float)).T
    return digits(float(np.polyfit(sizes, times, 1)[0]), 2).replace("-", "−")


def _panel(rows: Sequence[tuple[float, Row]], title: str, over: str, up: str, value: Any) -> list[tuple[str, Any]]:
    """A small chart of rows by a size, of those variants that were measured at several; it names what is left out."""
    by_variant: dict[str, list[tuple[float, Row]]] = defaultdict(list)
    for size, row in rows:
        if not row.flags:
            by_variant[row.variant].append((size, row))
    found = []
    for variant, each in by_variant.items():
        if len(each) > 1:
            note = f" {_growth([(size, row.seconds) for size, row in each])}"
            found += [{"x": size, "y": value(row), "variant": variant, "note": note} for size, row in each]
    shown = {each["variant"] for each in found}
    flagged = [f"{named(row.variant)} at {size:g}" for size, row in rows if row.flags and row.variant in shown]
    below = [f"behind a name p: its time grows as ({over})^p"]
    below += [f"flagged, left out: {lists(flagged)}"] * bool(flagged)
    return [(title, _lines(found, title, over, up, log=True, below=below))] if found else []


def _rate(row: Row) -> float:
    return float(row.flops / row.seconds / 1e9)


def _scaling(results: Results) -> list[tuple[str, Any]]:
    rows = results.pick(group="scaling", quantity="forward", threads=1)
    panels = []
    for axis, words in AXES.items():
        of_axis = [(row.size, row) for row in rows if row.axis == axis]
        if axis != "batch":
            of_axis += [(BASE_SIZES[axis], row) for row in rows if row.work == BASE]
        panels += _panel(of_axis, f"a convolution, over {words}", words, "GFLOP/s", _rate)
    network = [row for row in results.pick(layer="network", quantity="forward") if row.group in ("network", "batches")]
    batches = [
        (row.batch, row)
        for row in network
        if row.threads == 1 and row.variant in (OURS, PLAN, BASELINE) and row.batch != 1000
    ]
    panels += _panel(
        batches, "the network, over images", "images at once", "µs an image", lambda row: row.seconds / row.batch * 1e6
    )
    lanes = [(row.threads, row) for row in network if row.batch == 1000]
    return panels + _panel(lanes, "the network, 1000 images, over cores", "cores", "GFLOP/s", _rate)


def _training(results: Results) -> list[tuple[str, Any]]:
    """A chart a data set: test accuracy after each epoch, the mean over seeds with its interval."""
    found: dict[str, dict[tuple[str, int], list[float]]] = defaultdict(lambda: defaultdict(list))
    for run in results.trainings:
        for epoch in run["epochs"] if len(run["epochs"]) > 1 else []:
            if epoch["accuracy"] is not None:
                found[run["config"]["data"]][trained_through(run), epoch["epoch"]].append(epoch["accuracy"])
    charts = []
    for data, lines in found.items():
        points = []
        for (variant, epoch), values in lines.items():
            mean, half = seeds(values)
            points.append({"x": epoch, "y": mean, "variant": variant, "low": mean - half, "high": mean + half})
        charts.append((data_set(data), _lines(points, data_set(data), "epoch", "test accuracy", log=False)))
    return charts
