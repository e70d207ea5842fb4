"""The roofline of one core: what memory, caches and multiply-adds allow, and where each work and variant stands."""

import math
from collections import defaultdict
from typing import Any

import altair as alt
import pandas as pd

from jitconv.report.read import BASELINE, Results, Row
from jitconv.report.words import BAR, INK, LINE, PAPER, SOFT, colour, digits, named

ROOF_WIDTH, ROOF_HEIGHT, INTENSITIES, RATES = 1060, 430, (1.0, 800.0), (1.0, 1000.0)


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


def roofline(results: Results) -> Any:
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

    label = alt.Chart(labels).encode(x=at("at"), y=at("down"), text="label:N")
    layers = [
        alt.Chart(labels).mark_rule(color=LINE).encode(x=at("across"), y=at("from"), y2="to:Q"),
        alt.Chart(stems).mark_rule(color=BAR).encode(x=x, y="low:Q", y2="high:Q"),
        *_text(label, fontSize=10.5, color=SOFT),
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
    lines, ends = [], [{"intensity": high, "rate": peak, "label": f"peak {digits(peak, 3)} GFLOP/s", "below": False}]
    for where, limit in ({"peak": math.inf} | limits).items():
        corner = max(low, peak * 1e9 / limit)
        bends = [low, *([corner] if low < corner < high else []), high]
        lines += [{"limit": where, "intensity": each, "rate": min(peak, each * limit / 1e9)} for each in bends]
        if limit < math.inf:
            text = f"{where.removeprefix('copy ')}, {digits(limit / 1e9, 3)} GB/s"
            ends.append({"intensity": low, "rate": min(peak, low * limit / 1e9), "label": text, "below": True})
    roof = alt.Chart(pd.DataFrame(lines)).mark_line(color=INK, strokeWidth=1.6)
    texts = []
    for below in {each["below"] for each in ends}:
        end = alt.Chart(pd.DataFrame([each for each in ends if each["below"] == below]))
        place = {"align": "left", "dx": 12, "dy": 13} if below else {"align": "right", "dy": -9}
        texts += _text(end.encode(x=x, y=y, text="label:N"), color=INK, **place)
    return alt.layer(
        *layers[:1], roof.encode(x=x, y=y, detail="limit:N"), *layers[1:], *texts
    ).properties(width=ROOF_WIDTH, height=ROOF_HEIGHT)  # fmt: skip


def _text(chart: Any, **look: Any) -> list[Any]:
    """The chart's text, and below it the paper that keeps lines from crossing it."""
    return [chart.mark_text(**look, stroke=PAPER, strokeWidth=4, strokeJoin="round"), chart.mark_text(**look)]


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
        beside = [(across - half - 12, low), (across + half + 12, low)]
        for at, up in [*((across, low - down) for down in range(15, 160, 13)), *beside]:
            box = (at - half - 3, at + half + 3, up - 7, up + 7)
            if not any(box[0] < b and a < box[1] and box[2] < d and c < box[3] for a, b, c, d in boxes):
                break
        boxes.append(box)
        lead = {"across": across, "from": ROOF_HEIGHT - low, "to": ROOF_HEIGHT - min(up, low)}
        found.append({"label": each["label"], "at": at, "down": ROOF_HEIGHT - up} | lead)
    return pd.DataFrame(found)
