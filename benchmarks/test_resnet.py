"""The shapes of ResNet-18's convolutions, where torch runs oneDNN near the processor's peak."""

from typing import Any

from benchmarks.measure import measure_layer
from benchmarks.rows import Row, layer_rows
from jitconv.cases import Case

SHAPES = (  # channels in, image, channels out, kernel, stride, padding
    (3, 224, 64, 7, 2, 3),
    (64, 56, 64, 3, 1, 1),
    (64, 56, 128, 1, 2, 0),
    (128, 28, 128, 3, 1, 1),
    (256, 14, 256, 3, 1, 1),
    (512, 7, 512, 3, 1, 1),
)
TOO_SLOW = ("interpreted", "interpreted-numpy", "jit", "jit-parallel", "jit-static")  # seconds a call


def case(batch: int, C_in: int, image: int, C_out: int, K: int, stride: int, padding: int) -> Case:
    arrays = {"input": (batch, C_in, image, image), "weight": (C_out, C_in, K, K)}
    name = f"ResNet {C_in}→{C_out} {K}×{K}/{stride} at {image}×{image}, {batch}"
    return Case("conv2d", name, arrays, {"stride": stride, "padding": padding})


def rows(full: bool) -> list[Row]:
    skip = TOO_SLOW if full else (*TOO_SLOW, "vector")
    return [
        row
        for batch in ((1, 8, 16) if full else (1, 8))
        for shape in SHAPES
        for row in layer_rows("resnet", case(batch, *shape), skip)
        if full or batch > 1 or row.quantity == "forward"
    ]


def test_resnet(benchmark: Any, row: Row) -> None:
    measure_layer(benchmark, row)
