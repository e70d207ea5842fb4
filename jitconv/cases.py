"""The one table of cases: what tests prove, `jitconv verify` prints and benchmarks check before they time."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Shape = tuple[int, ...]
Fill = Callable[[np.random.Generator, Shape], np.ndarray]


def normal(rng: np.random.Generator, shape: Shape) -> np.ndarray:
    return rng.standard_normal(shape)


def positive(rng: np.random.Generator, shape: Shape) -> np.ndarray:
    return rng.random(shape)  # no cancellation: rounding errors of long sums show


def independent(rng: np.random.Generator, shape: Shape) -> np.ndarray:
    """Normal numbers of a generator of their own, where one of the same seed has filled another array."""
    return normal(rng.spawn(1)[0], shape)


def outliers(rng: np.random.Generator, shape: Shape) -> np.ndarray:
    return normal(rng, shape) * np.where(rng.random(shape) < 0.1, 1e6, 1.0)


def ties(rng: np.random.Generator, shape: Shape) -> np.ndarray:
    return rng.integers(-1, 2, shape).astype(float)


def sprinkled(*values: float, share: float = 0.1) -> Fill:
    """Normal numbers with a tenth of them, or another share, replaced by these values."""

    def fill(rng: np.random.Generator, shape: Shape) -> np.ndarray:
        return np.where(rng.random(shape) < share, rng.choice(values, shape), normal(rng, shape))

    return fill


def rarely(*values: float) -> Fill:
    return sprinkled(*values, share=1e-3)


def constant(value: float) -> Fill:
    return lambda rng, shape: np.full(shape, value)


def contiguous(x: np.ndarray) -> np.ndarray:
    return x


def transposed(x: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(x.T).T


def sliced(x: np.ndarray) -> np.ndarray:
    """Every other column of a wider array, which begins at an odd address."""
    wide = np.zeros((*x.shape[:-1], 2 * x.shape[-1] + 1), x.dtype)
    wide[..., 1::2] = x
    return wide[..., 1::2]


def channels_last(x: np.ndarray) -> np.ndarray:
    return np.moveaxis(np.ascontiguousarray(np.moveaxis(x, 1, -1)), -1, 1)


def repeated(x: np.ndarray) -> np.ndarray:
    """The first entry of the batch, seen several times in the same memory."""
    return np.lib.stride_tricks.as_strided(x, x.shape, (0, *x.strides[1:]))


def read_only(x: np.ndarray) -> np.ndarray:
    x.setflags(write=False)
    return x


@dataclass(frozen=True)
class Case:
    """One call of a layer: its array arguments by name, made on demand, and its other arguments.

    layer: a function of jitconv.functional (and of torch). arrays: shapes, in the order of the signature; those in
    `fixed` are given as they are (targets, say). fill and layout apply to the first array, or to all with `fill_all`;
    fill_grad makes the gradient that backward starts from, by default not the input's own numbers, whose squares
    would add up to sums that torch in float64, the oracle, rounds by more than the bound.
    """

    layer: str
    name: str
    arrays: Mapping[str, Shape]
    arguments: Mapping[str, Any] = field(default_factory=dict)
    fill: Fill = normal
    fill_all: bool = False
    layout: Callable[[np.ndarray], np.ndarray] = contiguous
    fixed: Mapping[str, np.ndarray] = field(default_factory=dict)
    fill_grad: Fill = independent

    def __str__(self) -> str:
        return f"{self.layer}: {self.name}"

    def inputs(self, dtype: str, seed: int = 0) -> dict[str, np.ndarray]:
        """Return the array arguments in `dtype` ("float32", "float64"); the same seed gives the same numbers."""
        rng = np.random.default_rng(seed)
        made = {}
        for name, shape in self.arrays.items():
            first = name == next(iter(self.arrays))
            values = (self.fill if first or self.fill_all else normal)(rng, shape).astype(dtype)
            made[name] = self.layout(values) if first else values
        return made | {
            name: value.astype(dtype) if value.dtype.kind == "f" else value for name, value in self.fixed.items()
        }


def conv2d(name: str, x: Shape, w: Shape, bias: bool = True, **others: Any) -> Case:
    own = {key: others.pop(key) for key in list(others) if key in ("stride", "padding", "dilation", "groups")}
    arrays = {"input": x, "weight": w} | ({"bias": w[:1]} if bias else {})
    return Case("conv2d", name, arrays, own, **others)


def max_pool2d(name: str, x: Shape, kernel_size: Any, **others: Any) -> Case:
    own = {key: others.pop(key) for key in list(others) if key in ("stride", "padding", "dilation", "ceil_mode")}
    return Case("max_pool2d", name, {"input": x}, {"kernel_size": kernel_size, **own}, **others)


def linear(name: str, x: Shape, w: Shape, bias: bool = True, **others: Any) -> Case:
    return Case("linear", name, {"input": x, "weight": w} | ({"bias": w[:1]} if bias else {}), **others)


def relu(name: str, x: Shape, **others: Any) -> Case:
    return Case("relu", name, {"input": x}, **others)


def flatten(name: str, x: Shape, start_dim: int, end_dim: int, **others: Any) -> Case:
    return Case("flatten", name, {"input": x}, {"start_dim": start_dim, "end_dim": end_dim}, **others)


def along(name: str, x: Shape, dim: int, **others: Any) -> list[Case]:
    return [Case(layer, name, {"input": x}, {"dim": dim}, **others) for layer in ("softmax", "log_softmax")]


def cross_entropy(name: str, x: Shape, target: Any, weight: Any = None, **arguments: Any) -> Case:
    fixed = {"target": np.asarray(target)} | ({} if weight is None else {"weight": np.asarray(weight)})
    fill = arguments.pop("fill", normal)
    return Case("cross_entropy", name, {"input": x}, arguments, fill=fill, fixed=fixed)


NAN, INF = np.nan, np.inf
IMAGE, WEIGHT = (2, 3, 7, 9), (4, 3, 3, 2)

CASES: tuple[Case, ...] = (
    conv2d("H≠W, K_h≠K_w", IMAGE, WEIGHT),
    conv2d("no bias", IMAGE, WEIGHT, bias=False),
    conv2d("stride above the kernel", (2, 2, 11, 10), (3, 2, 2, 3), stride=(3, 4)),
    conv2d("stride below the kernel", (2, 2, 11, 10), (3, 2, 5, 4), stride=(2, 3)),
    conv2d("padding", IMAGE, WEIGHT, padding=(2, 1)),
    conv2d("padding above the kernel", (1, 2, 3, 4), (2, 2, 2, 2), padding=(4, 3)),
    conv2d("padding same", IMAGE, (4, 3, 3, 5), padding="same"),
    conv2d("padding same, even kernel", IMAGE, (4, 3, 4, 2), padding="same", dilation=(1, 3)),
    conv2d("padding valid", IMAGE, WEIGHT, padding="valid"),
    conv2d("dilation", (2, 2, 9, 11), (3, 2, 3, 3), dilation=(2, 3), padding=(1, 2)),
    conv2d("groups", (2, 6, 7, 5), (4, 3, 3, 3), groups=2),
    conv2d("depthwise", (2, 5, 8, 9), (10, 1, 3, 3), groups=5, padding=1),
    conv2d("depthwise, stride", (1, 6, 9, 9), (6, 1, 5, 5), groups=6, padding=2, stride=2),
    conv2d("depthwise, a large window", (1, 2, 8, 9), (2, 1, 7, 7), groups=2, padding=3, dilation=(1, 2)),
    conv2d("1×1", (2, 5, 6, 7), (7, 5, 1, 1)),
    conv2d("1×1, stride", (2, 5, 7, 6), (7, 5, 1, 1), stride=2),
    conv2d("kernel as large as the input", (3, 2, 5, 4), (3, 2, 5, 4)),
    conv2d("everything at once", (2, 4, 9, 8), (6, 2, 2, 3), stride=(2, 1), padding=(1, 2), dilation=(2, 1), groups=2),
    conv2d("the network's", (3, 1, 28, 28), (20, 1, 5, 5)),
    conv2d("tile remainders", (1, 5, 19, 35), (13, 5, 3, 3), padding=1),
    conv2d("tile remainders, many channels", (2, 33, 7, 5), (17, 33, 3, 3), padding=1),
    conv2d("3×3 tiles", (2, 20, 23, 26), (35, 20, 3, 3), padding=1),
    conv2d("3×3 tiles, tails of channels and filters", (1, 37, 25, 22), (19, 37, 3, 3), padding=1),
    conv2d("3×3 tiles, no padding", (4, 17, 13, 11), (18, 17, 3, 3)),
    conv2d("3×3 tiles, padding above the kernel", (2, 17, 6, 9), (18, 17, 3, 3), padding=(4, 3)),
    conv2d("3×3 tiles, padding same", (1, 17, 13, 18), (20, 17, 3, 3), padding="same"),
    conv2d("3×3 tiles, groups", (2, 34, 14, 13), (40, 17, 3, 3), padding=1, groups=2),
    conv2d("3×3 tiles, wide", (1, 17, 4, 300), (17, 17, 3, 3), padding=1),
    conv2d("3×3 tiles, many small images", (9, 20, 7, 7), (33, 20, 3, 3), padding=1),
    conv2d("one row", (2, 3, 1, 40), (5, 3, 1, 4)),
    conv2d("one column", (2, 3, 23, 1), (5, 3, 4, 1), padding=(0, 0)),
    conv2d("ResNet stem", (1, 3, 17, 19), (8, 3, 7, 7), stride=2, padding=3),
    conv2d("batch 0", (0, 3, 7, 9), WEIGHT),
    conv2d("depthwise, batch 0", (0, 4, 7, 9), (4, 1, 3, 3), groups=4),
    conv2d("many channels, batch 0", (0, 16, 5, 5), (16, 16, 1, 1)),
    conv2d("one image, no batch", (3, 7, 9), WEIGHT),
    conv2d("non-contiguous", IMAGE, WEIGHT, layout=transposed),
    conv2d("every other column", IMAGE, WEIGHT, layout=sliced),
    conv2d("channels last", IMAGE, WEIGHT, layout=channels_last),
    conv2d("one image repeated", IMAGE, WEIGHT, layout=repeated),
    conv2d("read-only", IMAGE, WEIGHT, layout=read_only),
    conv2d("NaN", IMAGE, WEIGHT, fill=sprinkled(NAN), padding=1),
    conv2d("infinities", (2, 3, 17, 19), (9, 3, 3, 3), fill=sprinkled(INF, -INF), padding=1),
    conv2d("3×3 tiles, NaN and infinities", (2, 20, 23, 26), (35, 20, 3, 3), padding=1, fill=rarely(NAN, INF, -INF)),
    conv2d("outliers", IMAGE, WEIGHT, fill=outliers),
    conv2d("all positive", (2, 16, 9, 9), (4, 16, 3, 3), fill=positive, fill_all=True),
    max_pool2d("2×2", (2, 3, 8, 10), 2),
    max_pool2d("2×2, odd sizes", (2, 3, 9, 35), 2),
    max_pool2d("the network's", (3, 20, 24, 24), 2),
    max_pool2d("K_h≠K_w, overlapping", (2, 3, 9, 8), (3, 2), stride=(1, 2)),
    max_pool2d("overlapping windows share a maximum", (1, 2, 9, 9), 3, stride=1, fill=ties),
    max_pool2d("stride above the kernel", (2, 2, 11, 12), 2, stride=(3, 4)),
    max_pool2d("padding", (2, 2, 7, 9), (3, 4), padding=(1, 2)),
    max_pool2d("dilation", (2, 2, 11, 10), 3, dilation=(2, 3), stride=1, padding=1),
    max_pool2d("ceil_mode", (2, 2, 8, 7), 3, stride=2, ceil_mode=True),
    max_pool2d("ceil_mode, last window dropped", (1, 1, 4, 4), 1, stride=3, ceil_mode=True, padding=0),
    max_pool2d("ResNet's", (1, 4, 14, 15), 3, stride=2, padding=1),
    max_pool2d("whole plane", (2, 3, 5, 6), (5, 6)),
    max_pool2d("1×1", (2, 3, 5, 6), 1),
    max_pool2d("batch 0", (0, 3, 8, 8), 2),
    max_pool2d("one image, no batch", (3, 8, 8), 2),
    max_pool2d("non-contiguous", (2, 3, 8, 10), 2, layout=transposed),
    max_pool2d("channels last", (2, 3, 8, 10), 2, layout=channels_last),
    max_pool2d("ties", (2, 3, 10, 34), 2, fill=ties),
    max_pool2d("ties of 0 and −0", (2, 3, 10, 34), 2, fill=sprinkled(0.0, -0.0)),
    max_pool2d("NaN", (2, 3, 10, 34), 2, fill=sprinkled(NAN)),
    max_pool2d("NaN, overlapping", (2, 3, 10, 11), 3, stride=2, padding=1, fill=sprinkled(NAN, INF)),
    max_pool2d("only −inf", (2, 3, 8, 34), 2, fill=constant(-INF)),
    max_pool2d("only −inf, padding", (2, 3, 8, 9), 3, padding=1, fill=constant(-INF)),
    linear("small", (3, 5), (4, 5)),
    linear("no bias", (3, 5), (4, 5), bias=False),
    linear("the network's", (4, 2880), (500, 2880)),
    linear("tile remainders", (13, 71), (37, 71)),
    linear("rows of multiples of four", (12, 36), (20, 36)),
    linear("many images, few outputs", (301, 70), (5, 70)),
    linear("many images", (203, 37), (41, 37)),
    linear("one image", (1, 300), (33, 300)),
    linear("one output", (7, 19), (1, 19)),
    linear("one input", (7, 1), (5, 1)),
    linear("no inputs", (3, 0), (4, 0)),
    linear("no outputs", (3, 5), (0, 5)),
    linear("batch 0", (0, 5), (4, 5)),
    linear("vector", (5,), (4, 5)),
    linear("more dimensions", (2, 3, 5), (4, 5)),
    linear("non-contiguous", (6, 18), (9, 18), layout=transposed),
    linear("every other column", (6, 18), (9, 18), layout=sliced),
    linear("one row repeated", (6, 18), (9, 18), layout=repeated),
    linear("NaN", (6, 40), (9, 40), fill=sprinkled(NAN)),
    linear("infinities", (6, 40), (9, 40), fill=sprinkled(INF, -INF)),
    linear("outliers", (6, 40), (9, 40), fill=outliers),
    linear("all positive", (5, 700), (6, 700), fill=positive, fill_all=True),
    relu("vector", (37,)),
    relu("images", (2, 3, 7, 5)),
    relu("single number", ()),
    relu("empty", (0, 3)),
    relu("non-contiguous", (6, 18), layout=transposed),
    relu("NaN, infinities, zeros", (9, 35), fill=sprinkled(NAN, INF, -INF, 0.0, -0.0)),
    flatten("images", (2, 3, 5, 4), 1, -1),
    flatten("everything", (2, 3, 4), 0, -1),
    flatten("the middle", (2, 3, 4, 5), 1, 2),
    flatten("one dimension", (2, 3, 4), 1, 1),
    flatten("single number", (), 0, -1),
    flatten("batch 0", (0, 3, 5, 4), 1, -1),
    flatten("non-contiguous", (2, 3, 5, 4), 1, -1, layout=transposed),
    flatten("NaN, infinities", (2, 3, 5, 4), 1, -1, fill=sprinkled(NAN, INF, -INF)),
    *along("classes", (5, 10), 1),
    *along("many classes", (9, 43), 1),
    *along("many classes of pixels", (2, 33, 5), 1),
    *along("last of three", (2, 3, 17), -1),
    *along("middle of four", (2, 5, 3, 4), 1),
    *along("tile remainders", (2, 5, 9, 17), 1),
    *along("NaN, infinities, tile remainders", (2, 5, 9, 17), 1, fill=sprinkled(NAN, INF, -INF)),
    *along("first", (6, 7), 0),
    *along("one class", (4, 1), 1),
    *along("no classes", (4, 0), 1),
    *along("single number", (), 0),
    *along("batch 0", (0, 10), 1),
    *along("large numbers", (4, 12), 1, fill=lambda rng, shape: 80 * normal(rng, shape)),
    *along("outliers", (4, 12), 1, fill=outliers),
    *along("non-contiguous", (6, 18), 1, layout=transposed),
    *along("NaN", (12, 9), 1, fill=sprinkled(NAN)),
    *along("−inf", (12, 9), 1, fill=sprinkled(-INF)),
    *along("+inf", (12, 9), 1, fill=sprinkled(INF)),
    *along("only −inf", (3, 9), 1, fill=constant(-INF)),
    cross_entropy("mean", (5, 10), [0, 3, 9, 3, 1]),
    cross_entropy("sum", (5, 10), [0, 3, 9, 3, 1], reduction="sum"),
    cross_entropy("none", (5, 10), [0, 3, 9, 3, 1], reduction="none"),
    cross_entropy("one sample", (4,), 2),
    cross_entropy("bytes", (3, 10), np.array([0, 3, 9], np.uint8)),
    cross_entropy("ignored targets", (5, 4), [0, -100, 3, -100, 1]),
    cross_entropy("ignored class", (5, 4), [0, 2, 3, 2, 1], ignore_index=2),
    cross_entropy("everything ignored", (2, 4), [-100, -100]),
    cross_entropy("weights", (5, 4), [0, 1, 3, 2, 1], [0.1, 2.0, 0.0, 1.5]),
    cross_entropy("label smoothing", (5, 4), [0, 1, 3, 2, 1], label_smoothing=0.2),
    cross_entropy("weights, smoothing, ignored", (4, 3), [0, 1, -100, 2], [0.5, 2.0, 1.0], label_smoothing=0.1),
    cross_entropy("many classes", (5, 43), [0, 42, -100, 7, 1], np.arange(43.0), label_smoothing=0.1),
    cross_entropy("pixels", (2, 3, 4, 5), np.arange(40).reshape(2, 4, 5) % 3),
    cross_entropy("many classes of pixels", (2, 33, 5), np.arange(10).reshape(2, 5) * 3, label_smoothing=0.1),
    cross_entropy(
        "pixels, weights, smoothing, ignored", (2, 5, 9, 17), np.arange(306).reshape(2, 9, 17) % 6, np.arange(1.0, 6),
        label_smoothing=0.1, ignore_index=5,
    ),
    cross_entropy(
        "NaN, infinities, tile remainders", (2, 3, 9, 17), np.arange(306).reshape(2, 9, 17) % 3,
        fill=sprinkled(NAN, INF, -INF), reduction="none",
    ),
    cross_entropy("batch 0", (0, 4), np.zeros(0, np.int64)),
    cross_entropy("probabilities", (2, 3), [[0.2, 0.3, 0.5], [1.0, 0.0, 0.0]]),
    cross_entropy(
        "probabilities, weights, smoothing", (2, 3), [[0.2, 0.3, 0.5], [1.0, 0.0, 0.0]], [0.5, 2.0, 1.0],
        label_smoothing=0.1,
    ),
    cross_entropy("large numbers", (4, 5), [0, 1, 2, 3], fill=lambda rng, shape: 80 * normal(rng, shape)),
    cross_entropy("NaN", (12, 5), np.arange(12) % 5, fill=sprinkled(NAN), reduction="none"),
    cross_entropy("−inf", (12, 5), np.arange(12) % 5, fill=sprinkled(-INF), reduction="none"),
)  # fmt: skip


COMPILES_EACH = ("jit-static",)  # variants that compile for every geometry they meet
EVERY = 6  # of the cases, where time counts


def sample(cases: Sequence[Case]) -> list[Case]:
    """Return every sixth case, and those in which all the arguments differ from each other."""
    return [case for number, case in enumerate(cases) if number % EVERY == 0 or case.name == "everything at once"]


def sampled(variant: str, cases: Sequence[Case]) -> Sequence[Case]:
    """Return the cases to check a variant on where time counts: all, or a sample where each has to be compiled."""
    return sample(cases) if variant in COMPILES_EACH else cases
