"""The variants of a GPU: the network's layers, ResNet-18's convolutions, large products and large arrays."""

from typing import Any

import pytest

from benchmarks import test_layers, test_products, test_resnet
from benchmarks.gpu import measure_layer
from benchmarks.rows import ALL_CORES, Row, layer_rows
from jitconv import variants
from jitconv.cases import Case

MISSING = variants.missing("cuda")
if MISSING:
    pytest.skip(MISSING, allow_module_level=True)


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
    return [
        row
        for case in cases(full)
        for row in layer_rows("gpu", case, ("interpreted",), lanes=(ALL_CORES,), device="cuda")
    ]


def test_gpu(benchmark: Any, row: Row, again: int) -> None:
    measure_layer(benchmark, row)
