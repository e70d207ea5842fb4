"""Products of square matrices, as a linear layer without bias: how near the processor's peak the loops come."""

from typing import Any

from benchmarks.measure import measure_layer
from benchmarks.rows import Row, layer_rows
from jitconv.cases import Case

SIZES = (512, 1024, 2048)
TOO_SLOW = ("interpreted", "interpreted-numpy", "jit", "jit-parallel", "jit-static")  # seconds a call


def case(N: int) -> Case:
    return Case("linear", f"product {N}³", {"input": (N, N), "weight": (N, N)})


def rows(full: bool) -> list[Row]:
    found = [row for N in SIZES for row in layer_rows("products", case(N), (*TOO_SLOW, *(() if full else ("vector",))))]
    return [row for row in found if full or row.batch < 2048 or row.quantity == "forward"]


def test_products(benchmark: Any, row: Row) -> None:
    measure_layer(benchmark, row)
