"""The gradient of conv2d for an input of few channels by polyphase decomposition: a convolution of ∂z for each phase.

Lines of the input that are a stride apart meet the same taps, and so do columns: they are ∂z convolved with those taps,
in reverse order, with input and output channels exchanged.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from jitconv.variants.tiled.geometry import polyphase


class GradInput:
    """conv2d_grad_input for these shapes; geometry: stride, padding, dilation; conv2d: a kernel for stride 1."""

    def __init__(
        self, grad_shape: Any, weight_shape: Any, x_shape: Any, geometry: Any, conv2d: Callable[..., None]
    ) -> None:
        sizes = zip(x_shape[2:], grad_shape[2:], weight_shape[2:], *geometry, strict=True)
        self.rows, self.columns = (polyphase(*size) for size in sizes)
        self.groups, self.conv2d = x_shape[1] // weight_shape[1], conv2d
        self.dilation = tuple(d // math.gcd(s, d) for s, _, d in zip(*geometry, strict=True))  # of the taps of a phase

    def __call__(self, grad: Any, weight: Any, stride: Any, padding: Any, dilation: Any, out: Any) -> None:
        O, C, *size = weight.shape
        filters = weight.reshape(self.groups, O // self.groups, C, *size).swapaxes(1, 2)
        bias = np.zeros(out.shape[1], out.dtype)
        for rows in self.rows:
            for columns in self.columns:
                phase = out[:, :, rows.first :: stride[0], columns.first :: stride[1]]
                if not (rows.taps and columns.taps):
                    phase[...] = 0
                    continue
                taps = filters[..., rows.taps[::-1], :][..., columns.taps[::-1]]
                taps = np.ascontiguousarray(taps).reshape(out.shape[1], O // self.groups, *taps.shape[3:])
                before = -rows.offsets[-1], -columns.offsets[-1]
                z = phase if phase.flags.c_contiguous else np.empty(phase.shape, out.dtype)
                self.conv2d(grad, taps, bias, (1, 1), before, self.dilation, z)
                if z is not phase:
                    phase[...] = z
