"""The variants of a GPU: layers, ResNet-18's convolutions, large products and arrays, and training SimpleConvNet."""

from dataclasses import replace
from typing import Any

import pytest

from benchmarks import test_layers, test_products, test_resnet
from benchmarks.gpu import measure_copy, measure_layer, measure_training
from benchmarks.rows import ALL_CORES, Row, layer_rows, over_variants
from jitconv import variants
from jitconv.cases import Case

MISSING = variants.missing("cuda")
if MISSING:
    pytest.skip(MISSING, allow_module_level=True)

EPOCH = 60_000  # images of the whole of MNIST
COPIED = 1 << 28  # bytes, as many as the large relu reads
LARGE = (
    Case("max_pool2d", "pool 2×2, large", {"input": (256, 64, 56, 56)}, {"kernel_size": 2}),
    Case("relu", "relu, large", {"input": (1 << 26,)}),
    Case("softmax", "softmax of 1000, large", {"input": (1 << 16, 1000)}, {"dim": 1}),
)


def cases(full: bool) -> list[Case]:
    network = [case for N in test_layers.BATCHES for case in test_layers.cases(N)]
    resnet = [test_resnet.case(64, *shape) for shape in test_resnet.SHAPES]
    return [*network, *resnet, *map(test_products.case, (1024, 4096) if full else (4096,)), *LARGE]


def rows(full: bool) -> list[Row]:
    found = [
        row
        for case in cases(full)
        for row in layer_rows("gpu", case, ("interpreted",), lanes=(ALL_CORES,), device="cuda")
    ]
    copy = Row(
        group="gpu", work="copy", layer="machine", quantity="bandwidth", variant="torch", threads=ALL_CORES,
        device="cuda", bytes=2 * COPIED,
    )  # fmt: skip
    return [*found, copy, *training_rows()]


def training_rows() -> list[Row]:
    network = Row(group="gpu", work="", layer="network", quantity="", variant="", threads=ALL_CORES, device="cuda")
    found: list[Row] = []
    for captured in ("", ", captured"):
        for batch in (64, 1024):
            row = replace(network, work=f"training step, {batch}", quantity=f"step{captured}", batch=batch)
            found += over_variants(row, skip=("interpreted",))
        row = replace(network, work=f"epoch of {EPOCH:,}", quantity=f"epoch{captured}", batch=64, size=EPOCH)
        found += [replace(row, variant=name) for name in ("cuda-tiled", "torch")]
    return found


def test_gpu(benchmark: Any, row: Row) -> None:
    measure = {"network": measure_training, "machine": measure_copy}.get(row.layer, measure_layer)
    measure(benchmark, row)
