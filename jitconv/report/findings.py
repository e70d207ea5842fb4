"""The three sentences that the study comes to, from whatever was measured."""

from typing import Any

import pandas as pd

from jitconv.report.read import Results, chosen

SINGLE_LAYERS = ("layers", "products", "resnet")  # groups of rows
OURS = "jit-tiled"


def findings(results: Results) -> list[str]:
    """Return what compiled loops buy over interpreted ones, against torch, and in training; fewer without the data."""
    times = results.times
    found = [] if times.empty else [_over_interpreted(times), _against_torch(times)]
    return [sentence for sentence in (*found, _training(results.trainings)) if sentence]


def _seconds(times: pd.DataFrame, variant: str, **where: Any) -> float | None:
    found = chosen(times, variant=variant, **where)
    return None if found.empty else float(found["seconds"].iloc[0])


def _over_interpreted(times: pd.DataFrame) -> str:
    one = {"layer": "network", "quantity": "forward", "batch": 1, "threads": 1}
    slow, arrays, jit, ours, vector = (
        _seconds(times, name, **one) for name in ("interpreted", "interpreted-numpy", "jit", OURS, "vector")
    )
    if slow is None or arrays is None or jit is None or ours is None:
        return ""
    beside = f", and vector form in {_short(vector)}" if vector else ""
    return (
        f"One image takes the interpreted loops {_short(slow)} on tensors and {_short(arrays)} on arrays; the same "
        f"source compiled takes {_short(jit)}, {_round(slow / jit)} times less, and tiled {_short(ours)}, "
        f"{_round(slow / ours)} times less{beside}, all on one core."
    )


def _against_torch(times: pd.DataFrame) -> str:
    ours = times[(times["variant"] == OURS) & times["ratio"].notna() & times["group"].isin(SINGLE_LAYERS)]
    step = chosen(times, variant=OURS, group="network", quantity="step", threads=1)
    if ours.empty:
        return ""
    lost = ours[ours["ratio"] < 1]
    text = f"of {len(ours)} measurements of single layers {OURS} wins {len(ours) - len(lost)}"
    if len(step):
        text = (
            f"A training step of 64 images takes {OURS} 1/{step['ratio'].iloc[0]:.1f} of torch's time on one core; "
            + text
        )
    if lost.empty:
        return text + "."
    worst = lost.sort_values("ratio").iloc[0]
    name = f"{worst['work']} {worst['quantity']}"
    return f"{text} and loses {len(lost)}, the worst, {name}, at {worst['ratio']:.2f} of torch's speed."


def _training(trainings: list[dict[str, Any]]) -> str:
    whole = [run for run in trainings if run["epochs"][-1]["accuracy"] is not None and not run["estimated"]]
    longest = max((len(run["epochs"]) for run in whole), default=0)
    whole = [run for run in whole if len(run["epochs"]) == longest]
    parts = []
    for run in whole:
        accuracy = run["epochs"][-1]["accuracy"]
        parts.append(
            f"{run['config']['variant']} reaches {accuracy:.1%} of test digits in {_short(epoch_seconds(run))} an epoch"
        )
    return f"Trained for {longest} epochs, {' and '.join(parts)}." if parts else ""


def epoch_seconds(run: dict[str, Any]) -> float:
    """Return the median time of a run's epochs, in seconds."""
    return float(pd.Series([epoch["seconds"] for epoch in run["epochs"]]).median())


def _short(seconds: float) -> str:
    from jitconv.report.sections import seconds as text

    return text(seconds)


def _round(value: float) -> str:
    return f"{float(f'{value:.2g}'):,.0f}"
