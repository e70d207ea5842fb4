"""How sure a number is: intervals that hold the truth as often as they say, and rounds that are no measurement."""

import numpy as np
import pytest

from jitconv.report.intervals import between_passes, far_apart, interval, time_slices, two_modes

ROWS = 200


def passes(chance: np.random.Generator, true: float, count: int, between: float, within: float) -> list[list[float]]:
    """Rounds of fresh processes, whose speeds differ by `between` and whose rounds by `within`."""
    speeds = true * np.exp(chance.normal(0, between, count))
    return [list(speed * np.exp(chance.normal(0, within, 5))) for speed in speeds]


@pytest.mark.parametrize("count", [2, 5])
@pytest.mark.parametrize("between", [0.005, 0.03])
def test_coverage(count: int, between: float) -> None:
    chance = np.random.default_rng(count)
    ours = [passes(chance, 1.0, count, between, 0.01) for _ in range(ROWS)]
    theirs = [passes(chance, 2.0, count, between, 0.01) for _ in range(ROWS)]
    spread = between_passes(ours + theirs)
    if between > 0.01:  # than the rounds' own spread, which hides a smaller one
        assert spread**0.5 == pytest.approx(between, rel=0.25)
    of_ratios = between_passes(ours, theirs)
    held = [interval(mine, other, of_ratios).holds(2.0) for mine, other in zip(ours, theirs, strict=True)]
    assert 0.90 <= np.mean(held) <= 0.98
    held = [interval(mine, spread=spread).holds(1.0) for mine in ours]
    assert 0.90 <= np.mean(held) <= 0.98


def test_what_disturbs_a_whole_pass_is_not_in_its_ratios() -> None:
    chance = np.random.default_rng(3)
    drift = np.exp(chance.normal(0, 0.1, (ROWS, 4)))
    ours, theirs = ([[list(np.exp(chance.normal(0, 0.01, 5)) * slow) for slow in row] for row in drift] for _ in (0, 1))
    assert between_passes(ours) ** 0.5 == pytest.approx(0.1, rel=0.25)
    assert between_passes(ours, theirs) ** 0.5 < 0.01


def test_disturbed_rows_do_not_widen_the_others() -> None:
    chance = np.random.default_rng(1)
    rows = [passes(chance, 1.0, 2, 0.02, 0.005) for _ in range(ROWS)]
    disturbed = [[[1.0] * 5, [factor] * 5] for factor in (3.0, 20.0, 1200.0)]
    assert between_passes(rows + disturbed) ** 0.5 == pytest.approx(0.02, rel=0.25)


def test_rounds_alone_would_be_too_sure() -> None:
    """What the passes are for: intervals of the rounds of one process leave out the truth far too often."""
    chance = np.random.default_rng(0)
    held = [interval(passes(chance, 1.0, 1, 0.03, 0.005)).holds(1.0) for _ in range(ROWS)]
    assert np.mean(held) < 0.8


def test_too_few_rounds_have_no_interval() -> None:
    found = interval([[1.0, 1.1]], [[2.0, 2.2]])
    assert not found.known
    assert found.middle == pytest.approx(2.0)


def test_two_modes() -> None:
    assert two_modes([9.5, 102, 9.6, 14, 100, 18, 14])
    assert not two_modes([1.00, 1.01, 1.02, 1.01, 1.03, 1.00, 1.02])
    assert not two_modes([1.0, 2.0])


def test_passes_far_apart() -> None:
    assert far_apart([[52.0, 53.0, 55.0], [4.3, 4.4, 52.0]])
    assert far_apart([[1.0, 1.0], [1.0, 1.1], [1.6, 1.7]])
    assert not far_apart([[1.0, 1.0, 9.0], [1.4, 1.4, 9.0]])
    assert not far_apart([[1.0, 9.0]])


def test_time_slices() -> None:
    assert time_slices([1e-3, 1.01e-3, 5.0e-3, 9.02e-3, 5.01e-3], iterations=1)
    assert time_slices([1e-5, 1e-5, 5e-5, 9e-5, 1e-5], iterations=100)
    assert not time_slices([1e-3, 1.01e-3, 1.02e-3, 1.0e-3, 1.3e-3], iterations=1)
    assert not time_slices([1.0, 1.001, 1.002, 1.004, 1.0081], iterations=1)
