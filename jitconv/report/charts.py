"""The page's charts: Altair, drawn as SVG, so that the page needs no script."""

from typing import Any

import altair as alt
import pandas as pd
import vl_convert
from markupsafe import Markup

from jitconv.report.findings import epoch_seconds
from jitconv.report.read import Results

COLOURS = {
    "interpreted": "#b0a8b9",
    "interpreted-numpy": "#8d8698",
    "jit": "#8fb8de",
    "jit-parallel": "#4a8fc7",
    "jit-tiled": "#0b4f8a",
    "vector": "#d9a441",
    "cuda": "#8cc084",
    "cuda-tiled": "#2e7d4f",
    "torch": "#d1495b",
}
FONT = "system-ui, -apple-system, 'Segoe UI', 'Noto Sans', 'DejaVu Sans', sans-serif"


def charts(results: Results) -> dict[str, Markup]:
    """Return each chart as SVG by its name in the template; "" where there is nothing to draw."""
    drawn = {
        "ladder": _ladder(results.times),
        "scaling": _scaling(results.times),
        "batches": _batches(results.times),
        "curves": _curves(results.trainings),
        "epochs": _epochs(results.trainings),
    }
    return {name: _svg(chart) for name, chart in drawn.items()}


def _svg(chart: Any) -> Markup:
    if chart is None:
        return Markup("")
    styled = chart.configure(font=FONT, background="transparent").configure_view(stroke=None)
    styled = styled.configure_axis(gridColor="#e8e6e1", domainColor="#999", tickColor="#999", labelFontSize=11)
    return Markup(vl_convert.vegalite_to_svg(styled.to_dict()))


def _colour(names: Any, legend: Any = None) -> alt.Color:
    shown = [name for name in COLOURS if name in set(names)]
    shown += sorted(set(names) - set(shown))
    colours = [COLOURS.get(name, "#666") for name in shown]
    return alt.Color("variant:N", scale=alt.Scale(domain=shown, range=colours), legend=legend, title=None)


def _order(names: Any) -> list[str]:
    return [name for name in COLOURS if name in set(names)] + sorted(set(names) - set(COLOURS))


def _ladder(times: pd.DataFrame) -> Any:
    """Time of each layer at batch 64 on one core, a dot a variant."""
    rows = times[(times["group"] == "layers") & (times["batch"] == 64) & (times["threads"] == 1)]
    if rows.empty:
        return None
    rows = rows.assign(milliseconds=rows["seconds"] * 1e3, layer=rows["work"].str.rpartition(",")[0])
    rows = rows[["layer", "variant", "quantity", "milliseconds"]]
    base = alt.Chart(rows).encode(
        x=alt.X("milliseconds:Q", scale=alt.Scale(type="log"), title="milliseconds, log scale; 64 images, one core"),
        y=alt.Y("layer:N", title=None, sort=list(dict.fromkeys(rows["layer"]))),
    )
    span = base.mark_rule(color="#ddd9d2", strokeWidth=2).encode(x="min(milliseconds):Q", x2="max(milliseconds):Q")
    dots = base.mark_circle(size=90, opacity=0.95).encode(color=_colour(rows["variant"], alt.Legend(orient="top")))
    panel = alt.layer(span, dots).properties(width=330, height=26 * rows["layer"].nunique())
    return panel.facet(column=alt.Column("quantity:N", title=None, sort=["forward", "backward"]))


def _scaling(times: pd.DataFrame) -> Any:
    rows = times[(times["group"] == "scaling") & (times["quantity"] == "forward") & (times["threads"] == 1)]
    if rows.empty:
        return None
    rows = rows.assign(gflops=rows["flops"] / rows["seconds"] / 1e9)[["axis", "size", "variant", "gflops"]]
    panels = [
        alt.Chart(rows[rows["axis"] == axis])
        .mark_line(point=True, strokeWidth=2)
        .encode(
            x=alt.X(
                "size:Q", scale=alt.Scale(type="log", base=2), title=str(axis), axis=alt.Axis(values=sizes, format="d")
            ),
            y=alt.Y("gflops:Q", scale=alt.Scale(type="log"), title="GFLOP/s, log scale"),
            color=_colour(rows["variant"], alt.Legend(orient="top")),
        )
        .properties(width=330, height=190)
        for axis, sizes in ((axis, sorted(set(part["size"]))) for axis, part in rows.groupby("axis", sort=False))
    ]
    return alt.concat(*panels, columns=2)


def _batches(times: pd.DataFrame) -> Any:
    """Time of an image in batches of all sizes, a line for each variant and number of cores."""
    rows = times[times["group"] == "batches"]
    if rows.empty:
        return None
    rows = rows.assign(microseconds=rows["seconds"] / rows["batch"] * 1e6, cores=rows["threads"].astype(str))
    rows = rows[["batch", "variant", "cores", "microseconds"]]
    chart = alt.Chart(rows).mark_line(point=True, strokeWidth=2).encode(
        x=alt.X("batch:Q", scale=alt.Scale(type="log", base=2), title="images at once, log scale"),
        y=alt.Y("microseconds:Q", scale=alt.Scale(type="log"), title="µs an image, log scale"),
        color=_colour(rows["variant"], alt.Legend(orient="top")),
        strokeDash=alt.StrokeDash("cores:N", legend=alt.Legend(orient="top", title="cores")),
    )  # fmt: skip
    return chart.properties(width=560, height=240)


def _curves(trainings: list[dict[str, Any]]) -> Any:
    """Loss of the first steps, and test accuracy after each epoch."""
    first = [
        {"variant": run["config"]["variant"], "step": step, "loss": loss}
        for run in trainings
        for step, loss in enumerate(run["first_losses"], 1)
    ]
    epochs = [
        {"variant": run["config"]["variant"], "epoch": epoch["epoch"], "accuracy": epoch["accuracy"]}
        for run in trainings
        for epoch in run["epochs"]
        if epoch["accuracy"] is not None and len(run["epochs"]) > 1
    ]
    if not first or not epochs:
        return None
    names = [*(row["variant"] for row in first)]
    dash = alt.StrokeDash("variant:N", legend=None, sort=_order(names))
    left = alt.Chart(pd.DataFrame(first)).mark_line(strokeWidth=2).encode(
        x=alt.X("step:Q", title="step"),
        y=alt.Y("loss:Q", title="loss of the batch"),
        color=_colour(names, alt.Legend(orient="top")),
        strokeDash=dash,
    )  # fmt: skip
    right = alt.Chart(pd.DataFrame(epochs)).mark_line(strokeWidth=2, point=True).encode(
        x=alt.X("epoch:Q", title="epoch", axis=alt.Axis(tickMinStep=1)),
        y=alt.Y("accuracy:Q", title="test accuracy", scale=alt.Scale(zero=False), axis=alt.Axis(format="%")),
        color=_colour(names, alt.Legend(orient="top")),
        strokeDash=dash,
    )  # fmt: skip
    return alt.hconcat(left.properties(width=330, height=210), right.properties(width=330, height=210))


def _epochs(trainings: list[dict[str, Any]]) -> Any:
    if not trainings:
        return None
    rows = pd.DataFrame(
        {
            "variant": run["config"]["variant"],
            "seconds": epoch_seconds(run),
            "label": f"{epoch_seconds(run):.3g} s" + (" (estimated)" if run["estimated"] else ""),
        }
        for run in trainings
    )
    base = alt.Chart(rows).encode(
        x=alt.X("seconds:Q", scale=alt.Scale(type="log"), title="seconds an epoch, log scale"),
        y=alt.Y("variant:N", sort=_order(rows["variant"]), title=None),
    )
    dots = base.mark_circle(size=130).encode(color=_colour(rows["variant"]))
    labels = base.mark_text(align="left", dx=10, color="#333").encode(text="label:N")
    return (dots + labels).properties(width=560, height=30 * len(rows))
