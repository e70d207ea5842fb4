"""How sure a time or a ratio is: intervals from passes and rounds, and the signs that rounds are no measurement."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Passes = Sequence[Sequence[float]]  # of each pass, a fresh process, its rounds in seconds
RESAMPLES = 400
COVERAGE = 95  # per cent
RUN_COUNTS_AS = 6  # passes: how much the spread of the whole run says of that of a single row
SLICE = 4e-3  # seconds: what the system gives another process at a time
APART = 1.5  # times: passes whose medians differ by more are no samples of one time


@dataclass(frozen=True)
class Interval:
    """A median over passes with its 95 % interval; low and high are nan where there were too few rounds."""

    middle: float
    low: float = np.nan
    high: float = np.nan

    @property
    def known(self) -> bool:
        return not np.isnan(self.low)

    def holds(self, value: float) -> bool:
        """Whether the value lies inside; an unknown interval holds everything."""
        return not self.known or self.low <= value <= self.high


def middle(passes: Passes) -> float:
    """Return the geometric mean over passes of the median of their rounds."""
    return float(np.exp(np.mean([np.log(np.median(rounds)) for rounds in passes])))


def between_passes(rows: Sequence[Passes], against: Sequence[Passes] | None = None) -> float:
    """Return the variance of log times between passes that rounds do not explain, over all rows of a run.

    Or that of the log ratios of `against`'s times over them. A median of the rows' own: a few rows that something
    disturbed do not widen the intervals of all others. Of a variance with k degrees of freedom the median is
    (1 − 2/9k)³ of the mean (Wilson and Hilferty, 1931).
    """
    found = []
    theirs: Sequence[Passes | None] = [None] * len(rows) if against is None else against
    for draws in map(_draws, rows, theirs):
        if len(draws) > 1:
            shrunk = (1 - 2 / (9 * (len(draws) - 1))) ** 3
            found.append(_between(draws, shrunk))
    return max(0.0, float(np.median(found))) if found else 0.0


def interval(
    passes: Passes, against: Passes | None = None, spread: float = 0.0, coverage: float = COVERAGE
) -> Interval:
    """Return the time's interval, or that of the ratio of `against`'s time over it, by a bootstrap on two levels.

    Rounds are drawn again within each pass. Passes are too few to be drawn again: their effect is drawn from a t
    distribution whose variance is the passes' own, shrunk to `spread`, that of the run's times, or of its ratios (see
    between_passes). The passes of `against` pair up with these. One pass has the run's spread; in a run of one pass
    the interval is of rounds alone.
    """
    at = middle(passes)
    if against is not None:
        at = middle(against) / at
    if min(len(rounds) for rounds in (*passes, *(against or ()))) < 3:
        return Interval(at)
    draws = _draws(passes, against)
    count = len(draws)
    drawn = draws.mean(axis=0)
    if count > 1 or spread > 0:
        freedom = RUN_COUNTS_AS + count - 1
        own = max(0.0, _between(draws)) if count > 1 else 0.0
        variance = (RUN_COUNTS_AS * spread + (count - 1) * own) / freedom
        chance = np.random.default_rng(2)
        drawn = drawn + chance.standard_t(freedom, RESAMPLES) * np.sqrt(variance / count)
    tail = (100 - coverage) / 2
    low, high = np.exp(np.log(at) + np.percentile(drawn - np.mean(drawn), [tail, 100 - tail]))
    return Interval(at, float(low), float(high))


def _draws(passes: Passes, against: Passes | None = None) -> NDArray[np.float64]:
    """For each pass, or pair of passes, the logarithms of its time, or of the ratio, from rounds drawn again."""
    draws = np.array([_resampled(rounds) for rounds in passes])
    if against is None:
        return draws
    theirs = np.array([_resampled(rounds, seed=1) for rounds in against])
    count = min(len(draws), len(theirs))
    return theirs[:count] - draws[:count]


def _resampled(rounds: Sequence[float], seed: int = 0) -> NDArray[np.float64]:
    """Logarithms of the medians of rounds drawn again and again."""
    chance = np.random.default_rng([seed, len(rounds)])
    drawn = chance.integers(len(rounds), size=(RESAMPLES, len(rounds)))
    return np.log(np.median(np.asarray(rounds)[drawn], axis=1))


def _between(draws: NDArray[np.float64], shrunk: float = 1.0) -> float:
    """The variance of the passes' medians, over `shrunk`, less what their rounds account for; below 0 by chance."""
    medians = draws.mean(axis=1)
    return float(np.var(medians, ddof=1) / shrunk - np.mean(np.var(draws, axis=1)))


def two_modes(samples: Sequence[float]) -> bool:
    """Whether rounds fall into two groups: a gap of a tenth of the median, twice as wide as either group."""
    ordered = np.sort(samples)
    if len(ordered) < 5:
        return False
    gaps = np.diff(ordered)[1:-1]
    cut = 1 + int(np.argmax(gaps))
    below, above, gap = ordered[: cut + 1], ordered[cut + 1 :], ordered[cut + 1] - ordered[cut]
    return bool(gap > 0.1 * np.median(ordered) and gap > 2 * max(np.ptp(below), np.ptp(above)))


def far_apart(passes: Passes) -> bool:
    """Whether passes differ so much that their median is the time of none of them: two modes, one a process."""
    medians = [float(np.median(rounds)) for rounds in passes]
    return max(medians) > APART * min(medians)


def time_slices(samples: Sequence[float], iterations: int) -> bool:
    """Whether two or more rounds are longer than the shortest by whole time slices of another process."""
    ordered = np.sort(samples) * iterations
    excess = ordered[1:] - ordered[0]
    long = excess[excess > 0.75 * SLICE]
    off = np.abs(long - SLICE * np.round(long / SLICE))
    return len(long) >= 2 and bool((off < 0.1 * SLICE).all()) and bool(long[0] > 0.1 * ordered[0])
