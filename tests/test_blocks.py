"""Shapes that fill the tiled kernels' blocks and cross them: long sums, many rows, rows that lie whole pages apart."""

from math import inf, nan

import pytest
import torch

from jitconv.cases import Case, conv2d, linear, sprinkled
from jitconv.variants.tiled.product import HEIGHTS, MR, tiles_of
from jitconv.verify import check

CASES = (
    linear("several blocks and chunks", (30, 1100), (70, 1100)),
    linear("rows whole pages apart", (61, 1024), (50, 1024)),
    linear("rows whole pages apart, many columns", (270, 1024), (1100, 1024)),
    linear("more images than outputs, both many", (300, 600), (260, 600)),
    linear("images that fill no tile, two runs of the sum", (40, 3000), (33, 3000)),
    linear("a last tile that is packed where others are read in place", (20, 2100), (40, 2100)),
    conv2d("more filters than read B in place", (3, 64, 9, 10), (150, 64, 3, 3), padding=1),
    conv2d("gradient of the weights from strips", (5, 20, 9, 10), (200, 20, 3, 3), stride=2),
    conv2d("planes whole pages apart", (1, 8, 32, 32), (200, 8, 3, 3), padding=1),
    conv2d("filters whole pages apart", (2, 512, 5, 6), (140, 512, 1, 1)),
    conv2d("bands of lines", (1, 3, 70, 66), (14, 3, 5, 5), padding=2),
    conv2d("taps left out", (9, 64, 7, 7), (70, 64, 3, 3), padding=1),
    conv2d("taps left out, several parts of a batch", (35, 65, 5, 4), (64, 65, 3, 3), padding=1),
    conv2d("taps left out, some filters for each chunk", (16, 130, 8, 9), (64, 130, 3, 3), padding=1),
    conv2d("taps left out, dilation", (5, 64, 6, 9), (150, 64, 3, 5), padding=(1, 3), dilation=(2, 1)),
    conv2d("taps left out, groups", (8, 130, 6, 5), (140, 65, 3, 3), padding=2, groups=2),
    conv2d("taps left out, even kernels of thin images", (17, 64, 1, 5), (64, 64, 2, 4), padding=(1, 2)),
    conv2d("taps left out, all of them", (8, 64, 2, 2), (64, 64, 2, 2), padding=1, dilation=3),
    conv2d("taps left out, not a number", (8, 64, 6, 7), (64, 64, 3, 3), padding=1, fill=sprinkled(nan, inf)),
    conv2d(
        "weights not numbers, which never meet padding",
        (2, 20, 6, 7),
        (40, 20, 3, 3),
        padding=1,
        fill=sprinkled(inf),
        fill_all=True,
    ),
    conv2d("tiles that are not full", (2, 17, 5, 27), (40, 17, 3, 3), padding=1),
    conv2d("tiles that are half full", (1, 20, 5, 20), (48, 20, 3, 3), padding=1, stride=(1, 2)),
    conv2d("many terms for each channel", (1, 20, 9, 16), (24, 20, 7, 5), padding=3),
    conv2d("groups of blocks", (2, 36, 7, 7), (72, 18, 3, 3), padding=1, groups=2, stride=2),
    conv2d("depthwise, many channels", (2, 40, 9, 31), (40, 1, 3, 3), padding=1, groups=40, stride=(1, 2)),
    conv2d("more weights than the second-level cache keeps", (2, 300, 5, 7), (40, 300, 3, 3), padding=1),
    conv2d("many images, many taps", (13, 6, 12, 11), (10, 6, 5, 5)),
)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_values_and_gradients_equal_torch(case: Case, threads: int, dtype: str) -> None:
    torch.set_num_threads(threads)
    assert not [result for result in check(case, "jit-tiled", dtype) if not result.ok]


def test_rows_are_divided_into_few_tiles() -> None:
    for rows in range(1, 5 * MR):
        tiles: list[int] = []
        while sum(tiles) < rows:
            height, count = tiles_of.py_func(rows - sum(tiles))
            assert count > 0
            tiles += [height] * count
        assert sum(tiles) == rows
        assert rows not in HEIGHTS or tiles == [rows]
    for height in HEIGHTS[:-1]:  # rather two alike than a high and a low one
        if 2 * height > MR:
            height, count = tiles_of.py_func(2 * height)
            assert count == 2
