"""A driver of `jit-tiled` as a kernel that Python calls."""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from jitconv.variants.compiling import njit
from jitconv.variants.threads import Kernel

PARTS = 4  # of a worker's share: few enough that those of a short call are not too small

_compiled = functools.cache(njit)  # once, whatever the options that ops give a driver


class Tiled(Kernel):
    """A driver, compiled once, that is told where its workers run, how many they are, and the op's own options.

    A driver may return one fact that shapes and constants do not tell: `all_finite`, where a number that is not would
    meet padding, or `all_classes`, of the targets of a loss, which it alone reads. Where it is False, `fallback` gets
    the arguments: plain loops, or what raises.
    recordable: whether the driver gives its workers its own arguments and nothing else, by one each_worker.
    parts: in how many parts a worker may do its share of a recorded call; more than one where beginning is cheap.
    """

    skips_last = False  # the last result, where it is given an array of no size for it

    def __init__(
        self, driver: Any, fallback: Callable[..., None] | None, *options: Any, recordable: bool = False, parts: int = 1
    ) -> None:
        super().__init__(_compiled(driver))
        self.fallback, self.options, self.recordable, self.parts = fallback, options, recordable, parts

    def run(self, start: int, workers: int, *args: Any) -> None:
        if self.function(start, workers, *self.options, *args) is False and self.fallback is not None:
            self.fallback(*args)

    def calls(self, *args: Any) -> list[tuple["Tiled", tuple[Any, ...]]]:
        """The drivers' calls that a call consists of."""
        return [(self, args)]


class Choice:
    """A kernel that depends on shapes: `choose` returns it for the shapes and dtypes of all arrays and the constants.

    A call with arrays binds itself; whoever calls often binds once, and packs the weights that `packs` of the kernel
    names, which else packs them at each call.
    """

    def __init__(self, choose: Callable[..., Callable[..., Any]], skips_last: bool = False) -> None:
        self.bind = functools.lru_cache(maxsize=256)(choose)
        self.skips_last = skips_last  # the last result, where it is given an array of no size for it

    def __call__(self, *args: Any) -> None:
        arrays = tuple((arg.shape, arg.dtype) for arg in args if isinstance(arg, np.ndarray))
        self.bind(arrays, tuple(arg for arg in args if not isinstance(arg, np.ndarray)))(*args)
