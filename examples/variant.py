"""Write one layer in one's own way, have it verified against torch on the table of cases, and time it beside torch.

python examples/variant.py
jitconv verify and pytest benchmarks know it too: see docs/extending.md
"""

import time

import numba
import torch

import jitconv
from jitconv.cases import CASES
from jitconv.verify import check


@numba.njit
def relu(x, out):  # as jitconv/variants/scalar.py has it: NaN stays NaN, and `out` is filled
    for i in range(x.size):
        out[i] = 0 if x[i] < 0 else x[i]


def seconds(variant: str, x: torch.Tensor, rounds: int = 20) -> float:
    """Return the least time of a call; the first one, which compiles, does not count."""
    jitconv.functional.relu(x, variant=variant)
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        jitconv.functional.relu(x, variant=variant)
        times.append(time.perf_counter() - start)
    return min(times)


def main() -> list[str]:
    """Register the variant, and return what of it is wrong."""
    jitconv.register_variant("mine", base="jit", relu=relu)
    checks = [one for case in CASES if case.layer == "relu" for one in check(case, "mine")]
    x = torch.randn(1_000_000)
    for variant in ("torch", "jit", "mine"):
        print(f"{variant:>6}: {1e3 * seconds(variant, x):.2f} ms")
    return [f"{one.case}: {one.quantity}" for one in checks if not one.ok]


if __name__ == "__main__":
    print("wrong: " + ", ".join(wrong) if (wrong := main()) else "Every result is right.")
