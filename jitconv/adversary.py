"""Convolutions that are hard on a bound: huge pixels, taps that are zero or tiny, cancellation, a search for worse.

The usual bound is relative to what an element adds up. A variant that has one of its own (`Variant.bounds`) is tried
here, forward and in the gradient for the input, with numbers for which transforms of whole tiles round most.
"""

from collections.abc import Iterator
from functools import partial

import numpy as np

from jitconv import functional
from jitconv.cases import INF, NAN, Case, Fill, Shape, normal, rarely
from jitconv.verify import Check, Expected, results

INPUT_SHAPE, WEIGHT_SHAPE = (2, 20, 25, 26), (35, 20, 3, 3)
STEPS = 60  # of the search


def huge_pixel(rng: np.random.Generator, shape: Shape) -> np.ndarray:
    """Normal numbers, one of each channel 10³ to 10⁶ times as large."""
    values = normal(rng, shape)
    flat = values.reshape(*shape[:2], -1)
    place = rng.integers(0, flat.shape[2], shape[:2])[..., None]
    np.put_along_axis(flat, place, np.take_along_axis(flat, place, 2) * 10.0 ** rng.uniform(3, 6, place.shape), 2)
    return values


def tiny_taps(rng: np.random.Generator, shape: Shape) -> np.ndarray:
    """Normal numbers of which a quarter is 0 and a quarter 10⁻⁸ as large."""
    return normal(rng, shape) * rng.choice([0.0, 1e-8, 1.0, 1.0], shape)


def checkerboard(rng: np.random.Generator, shape: Shape) -> np.ndarray:
    """Numbers near 1 whose signs alternate along lines and columns."""
    signs = (-1.0) ** (np.arange(shape[-2])[:, None] + np.arange(shape[-1]))
    return signs * rng.uniform(0.9, 1.1, shape)


def pairs(first: float, second: float) -> Fill:
    """Every other channel is the one before, and all are multiplied by these in turn."""

    def fill(rng: np.random.Generator, shape: Shape) -> np.ndarray:
        half = normal(rng, (shape[0], (shape[1] + 1) // 2, *shape[2:]))
        factors = np.resize([first, second], (shape[1], *[1] * (len(shape) - 2)))
        return np.repeat(half, 2, 1)[:, : shape[1]] * factors

    return fill


def lost(eps: float) -> Fill:
    """1 in the first channel, and in all others less than it takes to change a 1 that they are added to."""
    return lambda rng, shape: np.where(np.arange(shape[1])[:, None, None] == 0, 1.0, 0.24 * eps) * np.ones(shape)


def times(factor: float, fill: Fill) -> Fill:
    return lambda rng, shape: fill(rng, shape) * factor


def cases(dtype: str) -> list[Case]:
    """Return the convolutions for a dtype: what underflows and overflows depends on it."""
    limits = np.finfo(dtype)
    denormal, large = float(limits.smallest_subnormal) * 1e4, float(limits.max) / 1e3
    small = float(limits.tiny) ** 0.5 * 1e-4
    return [
        _case("normal numbers"),
        _case("huge pixels", huge_pixel),
        _case("zero and tiny taps", normal, tiny_taps),
        _case("huge pixels, zero and tiny taps", huge_pixel, tiny_taps),
        _case("alternating signs", checkerboard, checkerboard),
        _case("cancellation of channels", pairs(1, 1), pairs(1, -1)),
        _case("cancellation of huge pixels", pairs(1e6, 1e6), pairs(1, -1)),
        _case("terms that are lost", lost(float(limits.eps)), lambda rng, shape: np.ones(shape)),
        _case("denormal pixels", times(denormal, normal)),
        _case("denormal taps", normal, times(denormal, normal)),
        _case("denormal products", times(small, huge_pixel), times(small, tiny_taps)),
        _case("sums that are finite, transforms that are not", times(large, normal)),
        _case("NaN and infinities", rarely(NAN, INF, -INF)),
        # Without padding: whether the zeros around an image meet an infinite tap is not the same in all of torch.
        _case("NaN and infinities in filters", normal, rarely(NAN, INF, -INF), padding=0),
    ]


def _case(name: str, pixels: Fill = normal, taps: Fill = normal, padding: int = 1) -> Case:
    weight = taps(np.random.default_rng(1), WEIGHT_SHAPE)
    arguments = {"padding": padding}
    return Case("conv2d", name, {"input": INPUT_SHAPE}, arguments, pixels, fixed={"weight": weight}, fill_grad=pixels)


def check_bounds(variant: str, dtype: str = "float32") -> list[Check]:
    """Compare the results that have a bound of the variant's own with torch's, in all cases and at the search's end."""
    found = []
    for case in cases(dtype):
        found += _check(case, variant, dtype)
    for quantity in sorted({one.quantity for one in found}):
        *_, last = climb(variant, quantity, dtype)
        found.append(last)
    return found


def climb(variant: str, quantity: str, dtype: str = "float32", seed: int = 0) -> Iterator[Check]:
    """Change some numbers at random, keep what uses more of the bound; yields each step that does.

    It begins with one channel that is not 0: the bound grows with each channel, what is rounded hardly.
    """
    rng = np.random.default_rng(seed)
    best = {
        "input": normal(rng, INPUT_SHAPE),
        "weight": normal(rng, WEIGHT_SHAPE),
        "grad": normal(rng, (2, 35, 25, 26)),
    }
    if quantity == "forward":
        best["weight"][:, 1:] = 0
    else:
        best["weight"][1:] = 0
    used = -1.0
    for _ in range(STEPS):
        tried = dict(best)
        name = str(rng.choice([*tried]))
        tried[name] = _changed(rng, tried[name])
        fixed = {"input": tried["input"], "weight": tried["weight"]}
        grad = partial(_given, tried["grad"])
        case = Case("conv2d", "hill climb", {}, {"padding": 1}, fixed=fixed, fill_grad=grad)
        (found,) = [one for one in _check(case, variant, dtype) if one.quantity == quantity]
        if found.bound_used > used:
            best, used = tried, found.bound_used
            yield found


def _given(array: np.ndarray, rng: np.random.Generator, shape: Shape) -> np.ndarray:
    return array


def _changed(rng: np.random.Generator, array: np.ndarray) -> np.ndarray:
    """The array with a part of its numbers, from a few to nearly all, negated, enlarged, shrunk, or another's."""
    where = rng.random(array.shape) < 10.0 ** rng.uniform(-3, 0)
    changed = [-array, np.sign(array), array * 1e3, array * 1e-3, np.roll(array, 1, -1), array * 0]
    return np.where(where, changed[rng.integers(len(changed))], array)


def _check(case: Case, variant: str, dtype: str) -> list[Check]:
    expected = Expected(case, dtype)
    ours = results(partial(functional.conv2d, variant=variant), case, expected.inputs, expected.grad)
    own = expected.own(variant)
    return [one for one in expected.compare(variant, ours) if one.quantity in own]
