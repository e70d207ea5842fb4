"""What the study set out to reach, beside what was measured: ratios of two times of one run, or rates."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from jitconv.report.findings import OURS, epoch_seconds
from jitconv.report.read import Results, chosen, peak

# Of each work what was measured, and what it would be if our multiply-adds ran at the peak and all else took no time.
Measured = list[tuple[float, float]]
UNKNOWN = (np.nan, np.nan)


@dataclass(frozen=True)
class Goal:
    """A goal: what, against whom, and how much is needed; `measure` finds it in the results, for so many cores.

    unit: "×" for the other's time over ours, "%" of the measured peak, "s" where less is better.
    """

    work: str
    against: str
    need: float
    measure: Callable[[Results, int], Measured]
    unit: str = "×"

    def line(self, results: Results, lanes: list[int]) -> dict[str, Any]:
        """Return the goal with what was measured in each lane (the worst, where it is about several works)."""
        worst = max if self.unit == "s" else min
        measured = [worst(found, default=UNKNOWN) for found in (self.measure(results, threads) for threads in lanes)]
        return {
            "work": self.work,
            "against": self.against,
            "need": self._shown(self.need),
            "lanes": [
                {
                    "shown": self._shown(value),
                    "missed": self._missed(value),
                    "at_peak": self._shown(at_peak),
                    "out_of_reach": self._missed(at_peak),
                }
                for value, at_peak in measured
            ],
        }

    def _missed(self, value: float) -> bool:
        return value > self.need if self.unit == "s" else value < self.need

    def _shown(self, value: float) -> str:
        if np.isnan(value):
            return "—"
        return f"{100 * value:.0f} %" if self.unit == "%" else f"{value:.3g} {self.unit}"


def goals(results: Results) -> dict[str, Any]:
    """Return the table of goals; empty where there are no benchmarks."""
    lanes = sorted(int(threads) for threads in results.times["threads"].unique())
    return {"lanes": lanes, "lines": [goal.line(results, lanes) for goal in GOALS] if lanes else []}


def _alone(values: Iterable[float]) -> Measured:
    return [(value, np.nan) for value in values]


def faster(other: str, **where: Any) -> Callable[[Results, int], Measured]:
    """Measure the other's times over ours."""

    def measure(results: Results, threads: int) -> Measured:
        rows = chosen(results.times, threads=threads, device="cpu", **where)
        ours, theirs = (rows[rows["variant"] == name] for name in (OURS, other))
        pairs = ours.merge(theirs, on=["work", "quantity"], suffixes=("", "_other"))
        least = (pairs["flops"] / peak(results.times, threads)).replace(0, np.nan)
        return list(zip(pairs["seconds_other"] / pairs["seconds"], pairs["seconds_other"] / least, strict=True))

    return measure


def of_peak(**where: Any) -> Callable[[Results, int], Measured]:
    """Measure our share of the multiply-add peak on as many cores."""

    def measure(results: Results, threads: int) -> Measured:
        rows = chosen(results.times, variant=OURS, threads=threads, **where)
        return _alone(rows["flops"] / rows["seconds"] / peak(results.times, threads))

    return measure


def cores(**where: Any) -> Callable[[Results, int], Measured]:
    """Measure our time on one core over that on several, for batches that are worth sharing out."""

    def measure(results: Results, threads: int) -> Measured:
        rows = chosen(results.times, variant=OURS, **where)
        rows = rows[rows["batch"] >= 64]
        one, several = rows[rows["threads"] == 1], rows[rows["threads"] == threads]
        pairs = one.merge(several, on=["work", "quantity"], suffixes=("", "_several"))
        return _alone(pairs["seconds"] / pairs["seconds_several"]) if threads > 1 else []

    return measure


def first_call(column: str) -> Callable[[Results, int], Measured]:
    """Measure the seconds of the first training step in a new process."""
    where = {"group": "compiling", "variant": OURS}
    return lambda results, threads: _alone(chosen(results.times, threads=threads, **where)[column])


def epoch(results: Results, threads: int) -> Measured:
    """Measure torch's seconds an epoch over ours, as `jitconv train` takes them."""
    by_variant = {
        run["config"]["variant"]: epoch_seconds(run)
        for run in results.trainings
        if run["config"]["device"] == "cpu" and (run["config"]["threads"] or run["machine"]["torch_threads"]) == threads
    }
    return _alone([by_variant["torch"] / by_variant[OURS]] if {"torch", OURS} <= by_variant.keys() else [])


def _network(batch: int) -> dict[str, Any]:
    return {"group": "network", "work": f"forward, {batch}"}


WORKS = ("conv 1→20 5×5, 64", "pool 2×2, 64", "fc1 2880→500, 64")
CONV, POOL, FC1 = ({"group": "layers", "work": work} for work in WORKS)
STEP = {"group": "network", "quantity": "step"}
GOALS = (
    Goal("products of 512, 1024, 2048", "peak", 0.9, of_peak(group="products", quantity="forward"), "%"),
    Goal("conv 1→20 5×5 forward, 64 images", "torch", 2.0, faster("torch", **CONV, quantity="forward")),
    Goal("conv 1→20 5×5 weight gradient", "torch", 2.0, faster("torch", **CONV, quantity="weight gradient")),
    Goal("pool 2×2 forward, 64 images", "torch", 20, faster("torch", **POOL, quantity="forward")),
    Goal("linear 2880→500 forward, 64 images", "torch", 1.7, faster("torch", **FC1, quantity="forward")),
    Goal("linear 2880→500 gradients", "torch", 1.7, faster("torch", **FC1, quantity="backward")),
    Goal("ResNet-18's convolutions forward", "torch", 0.9, faster("torch", group="resnet", quantity="forward")),
    Goal("ResNet-18's convolutions backward", "torch", 0.9, faster("torch", group="resnet", quantity="backward")),
    Goal("network forward, 1 image", "torch", 1.2, faster("torch", **_network(1))),
    Goal("network forward, 1 image", "ONNX Runtime", 1.0, faster("onnxruntime", **_network(1))),
    Goal("network forward, 64 images", "torch", 3.5, faster("torch", **_network(64))),
    Goal("network forward, 64 images", "ONNX Runtime", 1.1, faster("onnxruntime", **_network(64))),
    Goal("network forward, 64 images", "OpenVINO", 1.1, faster("openvino", **_network(64))),
    Goal("network forward, 1000 images", "torch", 4, faster("torch", **_network(1000))),
    Goal("network forward, 1000 images", "ONNX Runtime", 1.2, faster("onnxruntime", **_network(1000))),
    Goal("network forward, 1000 images", "OpenVINO", 1.2, faster("openvino", **_network(1000))),
    Goal("training step, 64 images", "torch", 3, faster("torch", **STEP)),
    Goal("training step, 64 images", "torch.compile", 2, faster("torch.compile", **STEP)),
    Goal("training step, 64 images", "JAX", 3, faster("jax", **STEP)),
    Goal("a layer's call on the smallest input", "torch", 0.5, faster("torch", group="overhead")),
    Goal("an epoch of training", "torch", 3, epoch),
    Goal("network forward, 64 images and more", "one core", 1.8, cores(group="network", quantity="forward")),
    Goal("first training step, nothing compiled", "—", 20, first_call("cold_seconds"), "s"),
    Goal("first training step, warm cache", "—", 1, first_call("warm_seconds"), "s"),
)
