"""Results JSON into tidy tables: one line a measurement, a check or an epoch, whatever file it came from."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

KEY = ["group", "work", "layer", "quantity", "variant", "threads", "device", "batch", "axis", "size"]
BASELINE = "torch"
GPU_TIMES = ["kernel_seconds", "end_to_end_seconds"]  # beside `seconds`, from a call until it is done
COLUMNS = [
    *KEY, *GPU_TIMES, "flops", "bytes", "borrows", "bound_used", "cold_seconds", "warm_seconds", "peak_mib", "samples",
]  # fmt: skip


@dataclass
class Results:
    """Everything the page is made of.

    times: a line a row of the benchmarks, with `seconds` (the median over rounds and passes), `ratio` (the baseline's
    time / this one's, on equal threads) and its 95 % interval `low`, `high`. digits, cases: the checks of `verify`.
    trainings: the contents of train's files. machines: what was measured on. gaps: rows without a time, and why.
    """

    times: pd.DataFrame
    digits: pd.DataFrame
    cases: pd.DataFrame
    trainings: list[dict[str, Any]] = field(default_factory=list)
    machines: list[dict[str, Any]] = field(default_factory=list)
    gaps: list[dict[str, str]] = field(default_factory=list)


def read(paths: Sequence[Path]) -> Results:
    """Read files, and every .json file in folders; ValueError for one that is not a result."""
    found = Results(pd.DataFrame(columns=[*COLUMNS, "seconds", "ratio", "low", "high"]), pd.DataFrame(), pd.DataFrame())
    rows: list[dict[str, Any]] = []
    digits: list[dict[str, Any]] = []
    cases: list[dict[str, Any]] = []
    for path in paths:
        for file in sorted(path.rglob("*.json")) if path.is_dir() else [path]:
            content = _content(file)
            kind = content.get("kind", "pytest-benchmark")
            machine = content["machine_info" if kind == "pytest-benchmark" else "machine"]
            found.machines.append({"file": file.name, **machine})
            if kind == "jitconv-verify":
                digits += content["digits"]
                cases += content["cases"]
            elif kind == "jitconv-train":
                found.trainings.append(content)
            else:
                found.gaps += content.get("gaps", [])
                rows += [_row(each["extra_info"], each["stats"]["data"]) for each in content["benchmarks"]]
    found.digits, found.cases = pd.DataFrame(digits), pd.DataFrame(cases)
    if rows:
        found.times = _with_ratios(_pooled(pd.DataFrame(rows).reindex(columns=COLUMNS)))
    found.trainings.sort(key=lambda run: run["epochs"][-1]["seconds"])
    return found


def _row(info: dict[str, Any], samples: list[float]) -> dict[str, Any]:
    on_gpu = {name: float(np.median(info[name])) for name in GPU_TIMES if name in info}
    return {**info, **on_gpu, "samples": samples}


def _content(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{file} is not a JSON file: {error}") from None
    known = isinstance(content, dict) and (
        content.get("kind") in ("jitconv-train", "jitconv-verify") or {"benchmarks", "machine_info"} <= content.keys()
    )
    if not known:
        raise ValueError(f"{file} is neither a file of pytest-benchmark nor of jitconv verify or train")
    return content


def _pooled(rows: pd.DataFrame) -> pd.DataFrame:
    """One line for all passes over a row."""
    rest = {name: (name, "first") for name in COLUMNS if name not in (*KEY, "samples", "bound_used")}
    pooled = rows.groupby(KEY, dropna=False, as_index=False).agg(
        samples=("samples", "sum"), bound_used=("bound_used", "max"), **rest
    )
    return pooled.assign(seconds=pooled["samples"].map(np.median))


def _with_ratios(times: pd.DataFrame) -> pd.DataFrame:
    same = [name for name in KEY if name != "variant"]
    baseline = times[times["variant"] == BASELINE][[*same, "samples"]]
    joined = times.merge(baseline, on=same, how="left", suffixes=("", "_baseline"))
    ratios = [_ratio(*pair) for pair in zip(joined["samples_baseline"], joined["samples"], strict=True)]
    return times.assign(**pd.DataFrame(ratios, columns=["ratio", "low", "high"], index=times.index))


def _ratio(theirs: Any, ours: Any) -> tuple[float, float, float]:
    """The ratio of two medians, and its 95 % bootstrap interval."""
    if not isinstance(theirs, list):
        return np.nan, np.nan, np.nan

    def ratio(a: Any, b: Any, axis: int = -1) -> Any:
        return np.median(a, axis=axis) / np.median(b, axis=axis)

    middle = float(ratio(theirs, ours))
    if min(len(theirs), len(ours)) < 3:
        return middle, np.nan, np.nan
    interval = stats.bootstrap(
        (theirs, ours), ratio, n_resamples=400, method="percentile", vectorized=True, rng=np.random.default_rng(0)
    ).confidence_interval
    return middle, float(interval.low), float(interval.high)


def chosen(times: pd.DataFrame, **where: Any) -> pd.DataFrame:
    """Return the lines that have these values in these columns."""
    for name, value in where.items():
        times = times[times[name] == value]
    return times


def peak(times: pd.DataFrame, threads: int) -> float:
    """Return the multiply-add peak of so many cores, in FLOP/s, or NaN; a core's is the best round of all lanes.

    It is a limit, and what else the machine did while it was measured must not lower it.
    """
    rows = chosen(times, quantity="peak")
    rates = rows["flops"] / rows["threads"] / rows["samples"].map(min)
    return float(rates.max()) * threads if len(rows) else np.nan
