"""conv2d with channels in the lanes, and its gradient for the input, bound to shapes: what direct.py is asked for.

    kernel = bind((N, C, H, W), weight_shape, dtype, stride, padding, dilation, groups, "nchw", "blocked", Epilogue())
    kernel(x, kernel.pack(weight), bias, residual, out)

"blocked" images are (N, C/lanes, H, W, lanes), lanes = simd.lanes_of(dtype), the last channels filled up: what lies in
those lanes is never read. With groups, an image is blocked only if each group's channels are whole blocks.
"""

import math
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, NamedTuple

import numpy as np

from jitconv.variants.simd import REGISTERS, lanes_of
from jitconv.variants.threads import count
from jitconv.variants.tiled import layout
from jitconv.variants.tiled.activations import hardsigmoid, hardswish, sigmoid, silu
from jitconv.variants.tiled.direct import Arrays, Launch, Tables, convolve
from jitconv.variants.tiled.geometry import Axis, Layout, forward, polyphase, tables
from jitconv.variants.tiled.kernel import PARTS, Tiled
from jitconv.variants.tiled.layout import FROM_BLOCKED, PACK, TO_BLOCKED, Weights, blocks_of, size_of
from jitconv.variants.tiled.microkernel import TileShape

Pair = tuple[int, int]
Shape = tuple[int, ...]
Steps = tuple[
    int, int, int, int
]  # from an output channel's weights, an input channel's and a group's to the next; taps

PIXELS = (14, 13, 8, 7, 4) if REGISTERS == 32 else (6, 4)  # of a tile: lines of 13 or 7, or of 2ⁿ, fill no tile of 14
TERMS, MOST_TERMS = 144, 200  # of a sum that are added up on their own: as many as 16 channels of 3×3 taps have,
SHORT_TERMS, FEW_TERMS = 72, 384  # and so many where all are so few that their rounding errors hardly even out
CHUNK = 80 << 10  # bytes of weights that all pixels of a band pass, while the next ones come to the second-level cache
BAND = 512 << 10  # bytes of the output that stay in the second-level cache
SMALL_BAND = 64 << 10  # the same where all blocks of input channels pass at once,
TOGETHER = 256 << 10  # and bytes of weights of filter tiles that then pass a band together
FEW_CHANNELS = 4  # of (N, C, H, W): with so few, the tables say where each term lies


class Epilogue(NamedTuple):
    """What follows the sum: + residual if there is one, and then the activation.

    activation: None, "relu", a pair of bounds, or one of SMOOTH. by_line: whether tiles must end with lines.
    """

    activation: Any = None
    residual: bool = False
    by_line: bool = False

    @property
    def bounds(self) -> tuple[float, float]:
        if isinstance(self.activation, tuple):
            return self.activation
        return (0.0 if self.activation == "relu" else -math.inf, math.inf)


class Sizes(NamedTuple):
    """A convolution from `inputs` to `outputs` channels in each group, of images of `size` to ones of `out_size`."""

    N: int
    groups: int
    inputs: int
    outputs: int
    size: Pair
    out_size: Pair


@dataclass(frozen=True)
class Part:
    """One launch: some filters, and with them the weights and biases they need, at one phase of the output."""

    shape: TileShape
    tables: Tables
    launch: Launch
    by_band: bool  # whether a band of lines is computed in blocked layout, and then brought into (N, C, H, W)
    out: int  # where it begins in an image
    weights: slice
    bias: Any  # which bias each lane has; None: as they lie


@dataclass(frozen=True)
class Packing:
    """A function that packs a weight; equal for all kernels that read it the same way."""

    parts: tuple[tuple[Weights, tuple[int, ...]], ...]

    def __call__(self, weight: np.ndarray, packed: np.ndarray | None = None) -> np.ndarray:
        if packed is None:
            packed = layout.aligned(self.size, weight)
        at = 0
        for weights, taps in self.parts:
            size = size_of(weights, taps)
            if size > 0:
                target = packed[at : at + size]
                PACK(weights, np.array(taps, np.int64), weight.reshape(-1), target)
            at += size
        return packed

    @cached_property
    def size(self) -> int:
        return sum(size_of(weights, taps) for weights, taps in self.parts)


CONVOLVE = Tiled(convolve, None, recordable=True, parts=PARTS)
SMOOTH = {
    function.__name__: Tiled(function, None, recordable=True, parts=PARTS)
    for function in (hardswish, silu, sigmoid, hardsigmoid)
}


class Convolution:
    """A bound convolution, of any number of parts; see the module."""

    def __init__(self, sizes: Sizes, dtype: Any, layouts: tuple[str, str], epilogue: Epilogue) -> None:
        self.sizes, self.dtype, self.epilogue = sizes, np.dtype(dtype), epilogue
        self.layout_in, self.layout_out = layouts
        self.parts: list[Part] = []
        self.packing: list[tuple[Weights, tuple[int, ...]]] = []
        self.depthwise = sizes.inputs == sizes.outputs == 1 and sizes.groups > 1
        self.planar = self.layout_in == "nchw" and not self.depthwise and sizes.inputs <= FEW_CHANNELS
        lanes = lanes_of(dtype)
        whole = sizes.groups == 1 or self.depthwise or sizes.inputs % lanes == sizes.outputs % lanes == 0
        if not whole and "blocked" in layouts:
            raise ValueError(f"groups of {sizes.inputs} and {sizes.outputs} channels are no whole blocks of {lanes}")

    @cached_property
    def pack(self) -> Packing:
        return Packing(tuple(self.packing))

    def add(self, rows: Axis, columns: Axis, taps: tuple[int, ...], steps: Steps) -> None:
        """Add the output's pixels on two axes; taps: the places of their weights, line by line of the filter."""
        if rows.length == 0 or columns.length == 0:
            return
        wanted = blocks_of(self.sizes.groups if self.depthwise else self.sizes.outputs, self.dtype)
        pairs = 0 if self.depthwise else wanted // 2
        if pairs:
            self._add(rows, columns, taps, steps, (2, 0, pairs))
        if wanted > 2 * pairs:
            self._add(rows, columns, taps, steps, (1, 2 * pairs, wanted - 2 * pairs))

    def _add(self, rows: Axis, columns: Axis, taps: Shape, steps: Steps, filters: tuple[int, int, int]) -> None:
        """Add so many filter tiles of so many vectors, from a block of output channels on: `filters`."""
        (N, groups, inputs, outputs, (H, W), (H_out, W_out)), lanes = self.sizes, lanes_of(self.dtype)
        (vectors, first, tiles), itemsize = filters, self.dtype.itemsize
        width, plane, out_plane = vectors * lanes, H * W, H_out * W_out * lanes
        if self.depthwise:
            weights = Weights(1, tiles, width, 1, 0, groups, 1, *steps)
            groups, tiles = tiles, 1
        else:
            depth, flush = (1, 1) if self.planar else _depth(len(taps), inputs, lanes)
            weights = Weights(groups, tiles, width, depth, first * lanes, outputs, inputs, *steps)
        if self.depthwise:
            term, pixel, x_image, block, flush = 0, lanes, plane * lanes, len(taps) * width, 1
            blocks, how = [(0, 1)], Layout(W * lanes, lanes, 1, width)
        elif self.planar:  # no loop over channels: those whose sum is short enough are one block
            term, pixel, x_image, each = 0, 1, inputs * plane, len(taps) * width
            some = inputs if inputs * len(taps) <= MOST_TERMS else 1
            channels = tuple((c * plane, c * each) for c in range(some))
            block, flush = some * each, max(1, TERMS // max(1, some * len(taps)))
            blocks, how = [(c * plane, 1) for c in range(0, inputs, some)], Layout(W, 1, 1, width, channels)
        else:
            starts = range(0, inputs, depth)
            if self.layout_in == "nchw":
                term, pixel, x_image = plane, 1, inputs * plane
                blocks = [(c * plane, min(depth, inputs - c)) for c in starts]
            else:
                term, pixel, x_image = 1, lanes, blocks_of(inputs, self.dtype) * plane * lanes
                blocks = [(c // lanes * plane * lanes + c % lanes, min(depth, inputs - c)) for c in starts]
            block, how = len(taps) * depth * width, Layout(W * pixel, pixel, depth, depth * width)
        pixels = min(PIXELS, key=partial(_cost, rows.length, columns.length))
        start = sum(size_of(*each) for each in self.packing)
        self.packing.append((weights, taps))
        across = -(-columns.length // pixels)
        lines, line = rows.length, columns.length
        if lines == 1 and not self.epilogue.by_line:
            lines, across, line = across, 1, -(-columns.length // across)
        chunk, total = max(1, min(CHUNK // max(1, block * itemsize), len(blocks))), block * len(blocks) * itemsize
        one_pass = chunk >= len(blocks)
        band = max(1, (SMALL_BAND if one_pass else BAND) // (line * width * itemsize))
        by_band = self.layout_out == "nchw" and not self._scattered(rows, columns)
        out_image, vector_ld = blocks_of(outputs, self.dtype) * out_plane, out_plane
        if by_band:
            out_image, vector_ld = (lanes if self.depthwise else outputs) * H_out * W_out, band * line * lanes
        launch = Launch(
            images=N, groups=groups, filters=tiles, outputs=lanes if self.depthwise else outputs - first * lanes,
            pixels=H_out * W_out, lines=lines, width=line, across=across,
            x_image=x_image, x_ld=columns.step * pixel, x_term=term,
            out_image=out_image, vector_ld=vector_ld, out_ld=columns.spacing * lanes,
            block=block, chunk=chunk, flush=flush, band=band,
            together=max(1, min(groups * tiles, TOGETHER // max(1, total))) if one_pass else 1,
            low=float(self.epilogue.bounds[0]), high=float(self.epilogue.bounds[1]),
        )  # fmt: skip
        table = tables(rows, columns, pixels, how, blocks, (W_out * lanes, lanes))
        near = columns.spacing == 1 and (columns.step == 1 or self.planar)  # few distances: each is compiled anew
        shape = TileShape(pixels, vectors, self.depthwise, *((columns.step * pixel, lanes) if near else (None, None)))
        biases = _biases(weights)
        out = first * lanes * H_out * W_out
        self.parts.append(
            Part(shape, table, launch, by_band, out, slice(start, start + size_of(weights, taps)), biases)
        )

    def _scattered(self, rows: Axis, columns: Axis) -> bool:
        """Whether a part's pixels are no run of (N, C, H, W), or its channels no whole blocks: in depthwise ones only.

        So are those that a residual is added to, which is blocked.
        """
        odd = self.depthwise and self.sizes.groups % lanes_of(self.dtype) > 0
        return odd or self.epilogue.residual or rows.spacing > 1 or columns.spacing > 1

    def put_images_apart(self, distance: int) -> None:
        """Leave so many numbers from an image of the output to the next; for one group and no residual."""
        self.parts = [replace(part, launch=part.launch._replace(out_image=distance)) for part in self.parts]

    def __call__(self, x: Any, packed: Any, bias: Any, residual: Any, out: Any) -> None:
        """Fill `out`; residual: an array in out's layout, or None."""
        for kernel, args in self.calls(x, packed, bias, residual, out):
            kernel(*args)

    @property
    def recordable(self) -> bool:
        """Whether its calls may be recorded, because they need no memory but their arrays."""
        return self.layout_out == "blocked" and not (self.layout_in == "nchw" and self.depthwise)

    def calls(self, x: Any, packed: Any, bias: Any, residual: Any, out: Any) -> list[tuple[Tiled, tuple[Any, ...]]]:
        """The drivers' calls that a call consists of. Reads no array but the bias."""
        sizes, dtype = self.sizes, self.dtype
        groups = (sizes.N, sizes.groups) if self.depthwise else (sizes.N * sizes.groups, 1)
        inputs, outputs = sizes.inputs * groups[1], sizes.outputs * groups[1]
        pixels, out_pixels = sizes.size[0] * sizes.size[1], sizes.out_size[0] * sizes.out_size[1]
        source, target = x.reshape(-1), out.reshape(-1)
        calls: list[tuple[Tiled, tuple[Any, ...]]] = []
        rest = np.empty(0, dtype) if residual is None else residual.reshape(-1)
        if self.layout_in == "nchw" and self.depthwise:
            source = self._blocked("x", source, groups[0], inputs, pixels, calls)
        passes_back = self.layout_out == "nchw" and not all(part.by_band for part in self.parts)
        if passes_back:
            if residual is not None:
                rest = self._blocked("residual", rest, groups[0], outputs, out_pixels, calls)
            size = groups[0] * blocks_of(outputs, dtype) * out_pixels * lanes_of(dtype)
            target = layout.workspace("out", size, dtype)
        for part in self.parts:
            own_bias = bias if part.bias is None else np.append(bias, dtype.type(0))[part.bias]
            band = target[:0]
            if part.by_band:
                band = layout.workspace("band", count() * part.launch.vector_ld * part.shape.vectors, dtype)
            arrays = Arrays(source, packed[part.weights], own_bias, rest[part.out :], band, target[part.out :])
            calls.append((CONVOLVE, (part.shape, arrays, part.tables, part.launch)))
        if passes_back:
            calls.append((FROM_BLOCKED, (target, outputs, out_pixels, out.reshape(-1))))
        if self.epilogue.activation in SMOOTH:
            calls.append((SMOOTH[self.epilogue.activation], (out.reshape(-1),)))
        return calls

    def _blocked(self, name: str, array: Any, groups: int, channels: int, pixels: int, calls: list[Any]) -> Any:
        size = groups * blocks_of(channels, self.dtype) * pixels * lanes_of(self.dtype)
        result = layout.workspace(name, size, self.dtype)
        calls.append((TO_BLOCKED, (array, channels, pixels, result)))
        return result


def _cost(lines: int, line: int, pixels: int) -> float:
    """How long tiles of so many pixels take for a line, about; the last of an image, if it is not full, three times."""
    return (-(-line // pixels) + (2 / lines if line % pixels else 0)) * (pixels + 1)


def _depth(taps: int, inputs: int, lanes: int) -> tuple[int, int]:
    """How many input channels make a block, and how many blocks' terms are added up on their own."""
    few = taps * inputs <= FEW_TERMS
    most, wanted, depth = (SHORT_TERMS, SHORT_TERMS, lanes) if few else (MOST_TERMS, TERMS, lanes)
    while depth > 1 and taps * depth > most:
        depth //= 2
    return depth, max(1, wanted // max(1, taps * depth))


def _biases(weights: Weights) -> Any:
    """Which bias each lane of the filter tiles has, the last + 1 where there is none; None: as they lie."""
    lanes = weights.tiles * weights.width
    if weights.first == 0 and lanes == weights.outputs:
        return None
    o = weights.first + np.arange(lanes)
    starts = np.arange(weights.groups)[:, None] * weights.outputs
    return np.where(o < weights.outputs, starts + o, weights.groups * weights.outputs).reshape(-1)


def bind(
    x_shape: Shape, weight_shape: Shape, dtype: Any, stride: Pair, padding: Pair, dilation: Pair, groups: int,
    layout_in: str, layout_out: str, epilogue: Epilogue,
) -> Convolution:  # fmt: skip
    """A convolution for these shapes; x_shape: (N, C, H, W) whatever the layout."""
    (N, C, H, W), (O, _, K_h, K_w) = x_shape, weight_shape
    H_out = (H + 2 * padding[0] - dilation[0] * (K_h - 1) - 1) // stride[0] + 1
    W_out = (W + 2 * padding[1] - dilation[1] * (K_w - 1) - 1) // stride[1] + 1
    size, out_size = (H, W), (H_out, W_out)
    if (K_h, K_w) == stride == (1, 1) and padding == (0, 0) and W % PIXELS[0] and not epilogue.by_line:
        size = out_size = (1, H * W)  # one long line has fewer tiles that are not full
    sizes = Sizes(N, groups, C // groups, O // groups, size, out_size)
    kernel = Convolution(sizes, dtype, (layout_in, layout_out), epilogue)
    rows = forward(size[0], out_size[0], K_h, stride[0], padding[0], dilation[0])
    columns = forward(size[1], out_size[1], K_w, stride[1], padding[1], dilation[1])
    area, inputs = K_h * K_w, C // groups
    kernel.add(rows, columns, tuple(range(area)), (inputs * area, area, O // groups * inputs * area, area))
    return kernel


def bind_grad_input(
    grad_shape: Shape, weight_shape: Shape, dtype: Any, geometry: tuple[Pair, Pair, Pair], x_shape: Shape
) -> Convolution:
    """The gradient for the input: ∂z convolved with the filters turned about, for each phase of the stride.

    geometry: stride, padding, dilation.
    """
    stride, padding, dilation = geometry
    (N, C, H, W), (O, inputs, K_h, K_w) = x_shape, weight_shape
    groups, area = C // inputs, K_h * K_w
    sizes = Sizes(N, groups, O // groups, inputs, (grad_shape[2], grad_shape[3]), (H, W))
    kernel = Convolution(sizes, dtype, ("nchw", "nchw"), Epilogue())
    for rows in polyphase(H, grad_shape[2], K_h, stride[0], padding[0], dilation[0]):
        for columns in polyphase(W, grad_shape[3], K_w, stride[1], padding[1], dilation[1]):
            taps = tuple(i * K_w + j for i in rows.taps for j in columns.taps)
            kernel.add(rows, columns, taps, (area, inputs * area, O // groups * inputs * area, area))
    return kernel
