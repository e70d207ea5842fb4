"""Two runs beside each other: which rows became faster or slower, and whether that can be told from noise."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jitconv.report import intervals
from jitconv.report.intervals import Interval
from jitconv.report.read import Results, Row, read
from jitconv.report.words import cores, seconds

FACTS = ("cpu", "cores", "vector_bits", "numba_target", "python", "memory_gib", "system")
TO_TELL = 1.02  # changes smaller than this are called the same where the interval is narrow


@dataclass(frozen=True)
class Change:
    """A row in both runs: the new time over the old, its interval, and the lower bound that counts against a limit.

    verdict: "faster", "slower", "same" (the interval is narrow and near 1) or "inconclusive".
    """

    old: Row
    new: Row
    factor: Interval
    corrected_low: float

    @property
    def verdict(self) -> str:
        if not self.factor.known or self.old.flags or self.new.flags:
            return "inconclusive"
        if self.factor.low > 1:
            return "slower"
        if self.factor.high < 1:
            return "faster"
        return "same" if self.factor.high < TO_TELL and self.factor.low > 1 / TO_TELL else "inconclusive"


@dataclass(frozen=True)
class Comparison:
    """Changes by the size of the slowdown, what differs between the machines, and rows that only one run has."""

    changes: list[Change]
    differences: list[str]
    only_old: list[str]
    only_new: list[str]

    def regressions(self, limit: float) -> list[Change]:
        """Return the rows that are slower by more than `limit` (0.05 for 5 %), all but certainly.

        The interval is widened for the number of rows (Bonferroni): of many rows that did not change, some lie
        outside their 95 % interval.
        """
        return [each for each in self.changes if each.verdict == "slower" and each.corrected_low > 1 + limit]

    def markdown(self, limit: float | None = None, force: bool = False) -> str:
        """Return a table for a pull request; verdicts are withheld between different machines unless forced."""
        lines = []
        withheld = bool(self.differences) and not force
        if self.differences:
            lines += ["The machines differ, so times cannot be compared" + (":" if withheld else ", but were:"), ""]
            lines += [f"- {each}" for each in self.differences] + [""]
        verdicts = [each.verdict for each in self.changes]
        if not withheld:
            counts = (f"{verdicts.count(word)} {word}" for word in ("slower", "faster", "same", "inconclusive"))
            lines += [f"{len(verdicts)} rows: {', '.join(counts)}.", ""]
            if limit is not None:
                found = self.regressions(limit)
                lines += [f"Slower by more than {limit:.0%}, all but certainly: {len(found)}.", ""]
        lines += ["| row | old | new | new / old | 95 % | verdict |", "|---|---:|---:|---:|---|---|"]
        for each in self.changes:
            between = f"{each.factor.low:.3f} to {each.factor.high:.3f}" if each.factor.known else "too few rounds"
            name = f"{each.new.work}, {each.new.quantity}, {each.new.variant}, {cores(each.new.threads)}"
            lines.append(
                f"| {name} | {seconds(each.old.seconds)} | {seconds(each.new.seconds)} | {each.factor.middle:.3f} "
                f"| {between} | {'withheld' if withheld else each.verdict} |"
            )
        for title, names in (("Only in the old run", self.only_old), ("Only in the new run", self.only_new)):
            if names:
                lines += ["", f"{title}: {'; '.join(names)}."]
        return "\n".join(lines)


def compare(old: Sequence[Path], new: Sequence[Path]) -> Comparison:
    """Compare the results in files or folders; ValueError where one is not a result."""
    return changes(read(old), read(new))


def changes(old: Results, new: Results) -> Comparison:
    """Compare two runs row by row."""
    olds, news = ({(row.work_key, row.variant): row for row in each.rows} for each in (old, new))
    both = [key for key in olds if key in news]
    found = []
    for key in both:
        spread = old.spread[olds[key].threads] + new.spread[news[key].threads]  # passes of two runs are no pairs
        factor = intervals.interval(olds[key].passes, news[key].passes, spread)
        found.append(Change(olds[key], news[key], factor, _corrected(factor, len(both))))
    found.sort(key=lambda each: -each.factor.middle)
    a, b = (each.machines[0] if each.machines else {} for each in (old, new))
    differences = [f"{name}: {a.get(name)} and {b.get(name)}" for name in FACTS if a.get(name) != b.get(name)]
    was, now = a.get("versions", {}), b.get("versions", {})
    installed = sorted(was.keys() & now.keys())  # what one run lacks has no part in rows that both have
    differences += [f"{name}: {was[name]} and {now[name]}" for name in installed if was[name] != now[name]]
    names = ([str(each[key].name) for key in each if key not in other] for each, other in ((olds, news), (news, olds)))
    return Comparison(found, differences, *names)


def _corrected(factor: Interval, rows: int) -> float:
    """The lower bound at a confidence for all rows together: the 95 % half-width, stretched as a normal tail's is."""
    if not factor.known:
        return 0.0
    from statistics import NormalDist

    stretch = NormalDist().inv_cdf(1 - 0.025 / max(1, rows)) / NormalDist().inv_cdf(0.975)
    return math.exp(math.log(factor.middle) - stretch * math.log(factor.middle / factor.low))
