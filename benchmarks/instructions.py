"""What jit-tiled's innermost loops are made of, read from the machine code: `python -m benchmarks.instructions`.

A loop that computes should keep its sums in registers, so store nothing and call nothing; how many loads come with its
multiply-adds says what bounds it. For x86-64 only.
"""

import argparse
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from jitconv import machine
from jitconv.variants.compiling import njit
from jitconv.variants.rows import Conv
from jitconv.variants.tiled import conv2d, fused, linear
from jitconv.variants.workers import ALONE

FEW = 8  # multiply-adds; loops with less clear or copy, or are what is left of others
JUMP = re.compile(r"j\w+\s+(\.LBB\w+)")
MULTIPLY_ADD = re.compile(r"vfn?m(add|sub)\d+p")
COUNTED = ("multiply_adds", "broadcasts", "loads", "stores", "calls", "others")
VECTOR = re.compile(r"v\w+.*%[xyz]mm")


@dataclass(frozen=True, order=True)
class Loop:
    """How many instructions of each kind an innermost loop has; a multiply-add may load as well.

    calls_around: those of the loop that it stands in, once for every register tile.
    """

    multiply_adds: int
    broadcasts: int
    loads: int
    stores: int
    calls: int
    others: int
    calls_around: int

    @property
    def loads_each(self) -> float:
        """Loads for every multiply-add; processors start one or two of each in a cycle."""
        return (self.broadcasts + self.loads) / self.multiply_adds


def kinds(line: str) -> set[str]:
    """Return what an instruction does (AT&T syntax, the result comes last); nothing of interest: others."""
    name, _, operands = line.partition("\t")
    if name.startswith("prefetch"):
        return {"others"}
    found = {"calls"} if name.startswith("call") else set()
    if operands.endswith(")") and name.startswith(("v", "mov")):
        found.add("stores")
    elif "(" in operands and VECTOR.match(line):
        found.add("broadcasts" if "broadcast" in name or "{1to" in operands else "loads")
    if MULTIPLY_ADD.match(name):
        found.add("multiply_adds")
    return found or {"others"}


def innermost(code: str) -> list[Loop]:
    """Return the innermost loops that compute; a loop goes from a label to the last jump back to it."""
    places: dict[str, int] = {}
    ends: dict[int, int] = {}
    lines: list[str] = []
    for line in map(str.strip, code.splitlines()):
        if line.startswith(".LBB"):
            places[line.partition(":")[0]] = len(lines)
        elif line and not line.startswith((".", "#")) and not line.endswith(":"):
            lines.append(line)
            jump = JUMP.match(line)
            if jump and jump[1] in places:
                ends[places[jump[1]]] = len(lines)
    found = [(*span, Counter(kind for line in lines[slice(*span)] for kind in kinds(line))) for span in ends.items()]
    loops = []
    for start, end, count in found:
        inside = any(start <= first and last <= end and (first, last) != (start, end) for first, last, _ in found)
        if not inside and count["multiply_adds"] >= max(FEW, (end - start) / 4):
            around = [other for first, last, other in found if first < start and end < last]
            calls_around = min(around, key=Counter.total, default=Counter())["calls"]
            loops.append(Loop(calls_around=calls_around, **{name: count[name] for name in COUNTED}))
    return loops


def machine_code(driver: Callable[..., Any], *args: Any) -> str:
    """Compile a driver of jit-tiled for these arguments, and for one core; code from the disk has no text."""
    kernel = njit(driver, cache=False)
    kernel(ALONE, 1, *args)
    return str(next(iter(kernel.inspect_asm().values())))


def kernels() -> Iterator[tuple[str, Callable[..., Any], tuple[Any, ...]]]:
    """Yield drivers by name, with arguments, small ones, as layers call them."""

    def some(*shape: int) -> Any:
        return np.ones(shape, np.float32)

    once, none = (1, 1), (0, 0)
    image, filters, z = some(1, 1, 8, 8), some(20, 1, 5, 5), some(1, 20, 4, 4)
    indices = np.zeros((1, 20, 2, 2), np.int64)
    yield "linear", linear.linear, (False, some(32, 64), some(40, 64), some(40), some(32, 40))
    yield "linear gradients", linear.linear_gradient, (False, some(32, 40), some(40, 64), some(32, 64))
    yield "conv2d", conv2d.conv2d, (False, image, filters, some(20), once, none, once, z)
    yield "conv2d weight gradient", conv2d.conv2d_grad_weight, (None, z, image, once, none, once, filters)
    pooled = (Conv(once, none, once), 4, image, filters, some(20), some(1, 20, 2, 2), indices)
    yield "conv2d, max_pool2d", fused.conv2d_max_pool2d, pooled


def write(file: Path) -> None:
    """Write the hottest loop of each kernel as JSON, for the report."""
    loops = []
    for name, driver, args in kernels():
        found = innermost(machine_code(driver, *args))
        if found:
            hottest = max(found, key=lambda loop: (loop.multiply_adds, -loop.loads_each))
            loops.append({"kernel": name, **asdict(hottest)})
    content = {"kind": "jitconv-instructions", "machine": machine.describe(), "loops": loops}
    file.write_text(json.dumps(content, indent=1))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.instructions", description=__doc__)
    parser.add_argument("--json", type=Path, help="write the hottest loops here instead")
    options = parser.parse_args()
    if options.json:
        write(options.json)
        return
    table = Table("kernel", "multiply-adds", "broadcasts", "loads", "stores", "calls", "others", "loads each")
    for name, driver, args in kernels():
        for loop in sorted(set(innermost(machine_code(driver, *args))), reverse=True):
            counts = (getattr(loop, kind) for kind in COUNTED)
            table.add_row(name, *map(str, counts), f"{loop.loads_each:.2f}")
            name = ""
    Console().print(table)


if __name__ == "__main__":
    main()
