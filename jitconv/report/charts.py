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
from jitconv.report.words import cores, data_set, digits, named, seeds

SANS = "system-ui, -apple-system, Segoe UI, Noto Sans, DejaVu Sans, sans-serif"
INK, SOFT, LINE, ACCENT, BAR, PAPER = (f"var(--{name})" for name in ("ink", "soft", "line", "accent", "bar", "paper"))
OF_RUNGS = (
    "jit",
    "jit-static",
    OURS,
    "jit-winograd",
    PLAN,
    "vector",
)  # those with a colour of their own, see style.css
SINGLE_LAYERS = ("layers", "products", "resnet")
AXES = {"batch": "images", "image": "pixels a side", "channels": "channels in", "kernel": "kernel side"}
BASE = "conv 8→16 5×5 at 28×28, 16"  # where the axes of the scaling rows meet
BASE_SIZES = {"batch": 16, "channels": 8, "kernel": 5, "image": 28}
WIDTH, HEIGHT, LABELS = 180, 170, 125  # pixels of a small chart, and right of it for the names of its lines
ROOF_WIDTH, ROOF_HEIGHT, INTENSITIES, RATES = 1060, 430, (1.0, 800.0), (1.0, 1000.0)


def charts(results: Results) -> dict[str, Any]:
    """Return each chart as SVG by its name in the template; "" where there is nothing to draw."""
    return {
        "roofline": _svg(
            _roofline(results), "Roofline of one core: rate of each work over its operations for each byte"
        ),
        "shares": _svg(_shares(results), "Share of single works at least p times as fast as torch, over p"),
        "scaling": [_svg(chart, f"Scaling: {title}") for title, chart in _scaling(results)],
        "training": [_svg(chart, f"Test accuracy over epochs: {title}") for title, chart in _training(results)],
    }


def colour(variant: str) -> str:
    """Return a variant's colour: the rung's own, ink for torch, a soft grey for others."""
    return f"var(--rung-{variant.replace(' ', '-')})" if variant in OF_RUNGS else INK if variant == BASELINE else SOFT


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


def _points(results: Results) -> list[dict[str, Any]]:
    """The roofline's: forward on one core; of layers 64 images, of ResNet-18's convolutions 8."""
    bandwidth = max((rate for where, rate in ceilings(results).items() if where != "multiply-adds"), default=math.inf)
    found = []
    for row in results.pick(quantity="forward", device="cpu", threads=1):
        wide = (row.group, row.batch) in (("layers", 64), ("resnet", 8)) or row.group == "products"
        if wide and row.flops and row.bytes:
            intensity, rate = row.flops / row.bytes, row.flops / row.seconds
            found.append(
                {
                    "work": row.work,
                    "variant": row.variant,
                    "name": named(row.variant),
                    "label": _short(row),
                    "intensity": intensity,
                    "rate": rate / 1e9,
                    "above": rate > min(results.peak(), intensity * bandwidth),
                }
            )
    return found


def _short(row: Row) -> str:
    words = str(row.work).removeprefix("product ").removeprefix("ResNet ")
    return (words.rpartition(",")[0] or words).partition(" at ")[0]


def ceilings(results: Results) -> dict[str, float]:
    """Return what one core can do at most: multiply-adds in FLOP/s, copies in bytes/s by where the arrays lie."""
    found = {"multiply-adds": results.peak()}
    for row in results.pick(quantity="bandwidth", device="cpu", threads=1):
        found[row.work] = row.bytes / min(row.samples)
    return found


def above(results: Results) -> list[str]:
    """Return which points lie above all ceilings, a variant at a time."""
    found: dict[str, list[str]] = defaultdict(list)
    for each in _points(results):
        if each["above"]:
            found[each["name"]].append(each["label"])
    return [f"{name} ({', '.join(works)})" for name, works in found.items()]


def _roofline(results: Results) -> Any:
    points, limits = _points(results), ceilings(results)
    if not points or math.isnan(limits["multiply-adds"]):
        return None
    peak = limits.pop("multiply-adds") / 1e9
    low, high = INTENSITIES
    x = alt.X(
        "intensity:Q",
        scale=alt.Scale(type="log", domain=INTENSITIES),
        title="operations for each byte of arguments and results",
        axis=alt.Axis(values=[1, 10, 100, 500], format="d", grid=False),
    )
    y = alt.Y(
        "rate:Q",
        scale=alt.Scale(type="log", domain=RATES),
        title="GFLOP/s",
        axis=alt.Axis(values=[1, 10, 100, 1000], format="d"),
    )
    frame = pd.DataFrame(points)
    stems = frame.groupby(["work", "label", "intensity"], as_index=False).agg(low=("rate", "min"), high=("rate", "max"))
    labels = _labels(stems)
    variants = {named(name): name for name in results.sorted_variants(set(frame["variant"]))}
    kinds = list(variants)

    def at(name: str) -> Any:
        return (alt.Y if name in ("from", "down") else alt.X)(f"{name}:Q", scale=None)

    layers = [
        alt.Chart(labels).mark_rule(color=LINE).encode(x=at("across"), y=at("from"), y2="to:Q"),
        alt.Chart(stems).mark_rule(color=BAR).encode(x=x, y="low:Q", y2="high:Q"),
        alt.Chart(labels).mark_text(fontSize=10.5, color=SOFT).encode(x=at("at"), y=at("down"), text="label:N"),
        alt.Chart(frame)
        .mark_point(filled=True, size=60, opacity=1, strokeWidth=1.4)
        .encode(
            x=x,
            y=y,
            shape=alt.Shape(
                "above:N", scale=alt.Scale(domain=[False, True], range=["circle", "triangle-up"]), legend=None
            ),
            fill=alt.Fill(
                "name:N",
                scale=alt.Scale(
                    domain=kinds, range=[PAPER if variants[k] == BASELINE else colour(variants[k]) for k in kinds]
                ),
                legend=alt.Legend(orient="top", title=None, labelColor=INK),
            ),
            stroke=alt.Stroke(
                "name:N",
                scale=alt.Scale(domain=kinds, range=[colour(variants[k]) for k in kinds]),
                legend=None,
            ),
        ),
    ]
    lines, ends = [], [{"intensity": high, "rate": peak, "label": f"peak {peak:.0f} GFLOP/s", "below": False}]
    for where, limit in ({"peak": math.inf} | limits).items():
        corner = max(low, peak * 1e9 / limit)
        bends = [low, *([corner] if low < corner < high else []), high]
        lines += [{"limit": where, "intensity": each, "rate": min(peak, each * limit / 1e9)} for each in bends]
        if limit < math.inf:
            text = f"{where.removeprefix('copy ')}, {digits(limit / 1e9, 2)} GB/s"
            ends.append({"intensity": low, "rate": min(peak, low * limit / 1e9), "label": text, "below": True})
    roof = alt.Chart(pd.DataFrame(lines)).mark_line(color=INK, strokeWidth=1.6)
    texts = [
        alt.Chart(pd.DataFrame([each for each in ends if each["below"] == below]))
        .mark_text(align="left" if below else "right", dx=12 if below else 0, dy=13 if below else -9, color=INK)
        .encode(x=x, y=y, text="label:N")
        for below in {each["below"] for each in ends}
    ]
    return alt.layer(
        *layers[:1], roof.encode(x=x, y=y, detail="limit:N"), *layers[1:], *texts
    ).properties(width=ROOF_WIDTH, height=ROOF_HEIGHT)  # fmt: skip


def _labels(stems: pd.DataFrame) -> pd.DataFrame:
    """In pixels: below each stem or beside its foot, where the text is free of all stems and of the texts before it."""

    def pixel(value: float, domain: tuple[float, float], length: int) -> float:
        return length * math.log(value / domain[0]) / math.log(domain[1] / domain[0])

    boxes = []
    for each in stems.to_dict("records"):
        across = pixel(each["intensity"], INTENSITIES, ROOF_WIDTH)
        low, high = (pixel(each[name], RATES, ROOF_HEIGHT) for name in ("low", "high"))
        boxes.append((across - 5, across + 5, low - 5, high + 5))
    found = []
    for each in stems.sort_values("low").to_dict("records"):
        across, half = pixel(each["intensity"], INTENSITIES, ROOF_WIDTH), 3.1 * len(each["label"])
        low = pixel(each["low"], RATES, ROOF_HEIGHT)
        beside = [(across - half - 9, low), (across + half + 9, low)]
        for at, up in [*((across, low - down) for down in range(13, 150, 13)), *beside]:
            box = (at - half, at + half, up - 6, up + 6)
            if not any(box[0] < b and a < box[1] and box[2] < d and c < box[3] for a, b, c, d in boxes):
                break
        boxes.append(box)
        lead = {"across": across, "from": ROOF_HEIGHT - low, "to": ROOF_HEIGHT - min(up, low)}
        found.append({"label": each["label"], "at": at, "down": ROOF_HEIGHT - up} | lead)
    return pd.DataFrame(found)


def _shares(results: Results) -> Any:
    """A curve over p instead of a mean, which a few large ratios would make."""
    rows = []
    for threads in results.lanes:
        ratios = sorted(
            row.ratio.middle
            for row in results.pick(variant=OURS, threads=threads)
            if row.group in SINGLE_LAYERS and row.ratio is not None and not row.flags
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


def _lines(points: Sequence[dict[str, Any]], title: str, over: str, up: str, log: bool) -> Any:
    """Lines in their variants' colours with their names at the ends; torch's is dashed.

    points: x, y and variant of each, with `low` and `high` of a band and a `note` behind the name if there are any.
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
    return alt.layer(*layers).properties(width=WIDTH + LABELS, height=HEIGHT, title=title)


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
    """A small chart of rows by a size, of those variants that were measured at several."""
    by_variant: dict[str, list[tuple[float, Row]]] = defaultdict(list)
    for size, row in rows:
        if not row.flags:
            by_variant[row.variant].append((size, row))
    found = []
    for variant, each in by_variant.items():
        if len(each) > 1:
            note = f" {_growth([(size, row.seconds) for size, row in each])}"
            found += [{"x": size, "y": value(row), "variant": variant, "note": note} for size, row in each]
    return [(title, _lines(found, title, over, up, log=True))] if found else []


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
