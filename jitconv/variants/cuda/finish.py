"""What the kernels of linear and conv2d make of a finished sum before they store it: a constant of the kernel."""

from collections.abc import Callable
from typing import Any

from jitconv.variants.cuda.grid import number
from jitconv.variants.cuda.launch import device

Finish = Callable[[Any, Any], Any]  # (array, number of its kind) → number


@device
def as_it_is(array, value):
    return value


@device
def rectified(array, value):
    """max(0, value), as relu_at has it"""
    return number(array, 0) if value < 0 else value
