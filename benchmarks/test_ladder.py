"""The ladder of examples/ladder, a row for each rung and layer, from the equation interpreted to a whole plan."""

import importlib
import sys
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.measure import measure
from benchmarks.rows import Row

FOLDER = Path(__file__).parent.parent / "examples" / "ladder"


def _rung() -> Any:
    if str(FOLDER) not in sys.path:
        sys.path.append(str(FOLDER))
    return importlib.import_module("rung")


def rows(full: bool) -> list[Row]:
    rung = _rung()
    found = []
    for file in rung.rungs():
        module = rung.load(file)
        for layer in module.LAYERS:
            images = getattr(module, "IMAGES", rung.SIZES[layer][0][0])
            flops = float(rung.flops(module, layer)) * images / rung.SIZES[layer][0][0]
            row = Row(
                group="ladder", work=layer, layer="conv2d", quantity="forward", variant=file.stem, threads=1,
                batch=images, flops=flops,
            )  # fmt: skip
            found.append(row)
    return found


def test_ladder(benchmark: Any, row: Row) -> None:
    rung = _rung()
    module, given = rung.load(FOLDER / f"{row.variant}.py"), rung.arrays(row.work, row.batch)

    def used() -> float:
        result = module.conv2d(*given)
        return float(rung.error(module, row.work, *given[:3], given[3] if result is None else result))

    measure(benchmark, row, partial(module.conv2d, *given), used)
