"""Numbers and names as people write them (no exponent, few digits, a unit that fits), and the colours of names."""

import math
import statistics
from collections.abc import Sequence
from typing import Any

from jitconv.report.intervals import Interval

NOT_MEASURED = "not measured in this run"
FLAGGED = "‡"
FLAG_SAYS = "‡ marks times that were disturbed while they were measured, and factors of such times: they have no rank."
NAMES = {
    "interpreted-numpy": "interpreted, arrays",
    "interpreted": "interpreted, tensors",
    "onnxruntime": "ONNX Runtime",
    "openvino": "OpenVINO",
    "jax": "JAX",
    "a Function that computes nothing": "an empty autograd Function",
}
INK, SOFT, LINE, ACCENT, BAR, PAPER = (f"var(--{name})" for name in ("ink", "soft", "line", "accent", "bar", "paper"))
OF_RUNGS = ("jit", "jit-parallel", "jit-static", "jit-tiled", "jit-winograd", "jitconv plan", "vector")  # in style.css
QUANTITIES = ("forward", "backward", "weight gradient", "step")
DATA_SETS = {"mnist": "MNIST", "fashion-mnist": "Fashion-MNIST", "mnist-10k": "MNIST's bundled 10,000"}


def digits(value: float, n: int) -> str:
    """Return a number with n significant digits and its thousands apart."""
    if value == 0 or math.isnan(value):
        return "0" if value == 0 else "–"
    rounded = float(f"{value:.{n - 1}e}")
    return f"{rounded:,.{max(0, n - 1 - math.floor(math.log10(abs(rounded))))}f}"


def seconds(value: float | None, n: int = 3) -> str:
    """Return a time; above an hour in hours, above two days in days."""
    if value is None or math.isnan(value):
        return "–"
    for unit, size, least in (("days", 86400, 2 * 86400), ("h", 3600, 3600), ("s", 1, 0.9995), ("ms", 1e-3, 0.9995e-3)):
        if value >= least:
            return f"{digits(value / size, min(n, 2) if unit in ('days', 'h') else n)} {unit}"
    return f"{digits(value * 1e6, n)} µs" if value >= 0.9995e-6 else f"{digits(value * 1e9, n)} ns"


def ratio(value: float | None) -> str:
    """Return a ratio: two digits, three from 1 to 1.3, where two would hide it, whole numbers as 1/23 below a tenth."""
    if value is None or math.isnan(value):
        return "–"
    if value < 0.1:
        return f"1/{digits(1 / value, 2)}"
    return digits(value, 3 if 1 <= value < 1.3 else 2)


def times(value: float | None) -> str:
    """Return a ratio with its sign: 2.1×, 1/23 of the speed."""
    shown = ratio(value)
    return shown if shown == "–" or shown.startswith("1/") else f"{shown}×"


def percent(value: float) -> str:
    """Return a share as per cent."""
    if math.isnan(value):
        return "–"
    return "under 0.1 %" if 0 < value < 1e-3 else f"{digits(100 * value, 2)} %"


def named(variant: str) -> str:
    """Return an engine's name as its makers write it; a variant's as it is."""
    return NAMES.get(variant, variant)


def cores(threads: int) -> str:
    return "one core" if threads == 1 else f"{ {2: 'two', 3: 'three', 4: 'four'}.get(threads, threads) } cores"


def between(interval: Interval) -> tuple[str, str]:
    """Return a ratio and its interval, all three to the ratio's last digit: "1.26", "1.16–1.90"; "" where unknown."""
    middle = ratio(interval.middle)
    if middle.startswith("1/") or middle == "–" or not interval.known:
        return middle, "" if not interval.known else f"{ratio(interval.low)}–{ratio(interval.high)}"
    places = len(middle.partition(".")[2])
    return middle, f"{interval.low:,.{places}f}–{interval.high:,.{places}f}"


def work_of(row: Any) -> str:
    """Return what a row measures: its work and quantity, a work of SimpleConvNet by its images."""
    name, quantity = str(row.work), str(row.quantity)
    if name.startswith(f"{quantity}, "):
        return f"SimpleConvNet {quantity}, {row.batch:,} image{'s' * (row.batch != 1)}"
    return f"SimpleConvNet {name}" if row.group == "network" else f"{name}, {quantity}"


def data_set(name: str) -> str:
    """Return a data set's name as people write it."""
    return DATA_SETS.get(name, name)


def seeds(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean over seeds and half its 95 % interval by Student's t; nan where there is one seed."""
    quantile = {2: 12.7, 3: 4.30, 4: 3.18, 5: 2.78}.get(len(values), 2.0)
    half = quantile * statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return statistics.mean(values), half


def lists(words: Sequence[str]) -> str:
    """Return words as a list in a sentence: "a, b and c"."""
    return " and ".join(filter(None, (", ".join(words[:-1]), *words[-1:])))


def colour(variant: str) -> str:
    """Return a variant's colour: the rung's own, ink for torch, a soft grey for others."""
    return f"var(--rung-{variant.replace(' ', '-')})" if variant in OF_RUNGS else INK if variant == "torch" else SOFT
