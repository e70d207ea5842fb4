"""The ladder of variants: what a variant is, and the one registry of them.

A kernel variant maps an op's name to a function that fills the arrays it is given last:

    conv2d(x, weight, bias, stride, padding, dilation, out)
    conv2d_grad_input(grad, weight, stride, padding, dilation, out), conv2d_grad_weight(grad, x, …, out), …

`scalar.py` defines every op and its arguments. Copy its signature, register, and the new variant is verified,
timed and reported beside the others.
"""

import importlib.util
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from importlib.metadata import entry_points
from typing import Any

import torch

from jitconv.compat import constant_while_compiling

Kernel = Callable[..., Any]


@dataclass(frozen=True)
class Variant:
    """One way to compute the layers.

    name: what `variant=` calls it. device: "cpu", "cuda" or "any". ops: the kernels by name (see above); an op
    that is missing is the base's in `register_variant`, and for flatten means a view.
    tensors: give the kernels torch tensors as they come, instead of C-contiguous NumPy arrays on the CPU.
    whole: the ops are not kernels but complete functions of torch tensors with torch's signature and gradients.
    bounds: by op, for results whose rounding errors have a bound of their own: a function of the op's arrays, its
    constants and the result's shape, to the bound of every element in units of eps, or None for the usual one.
    calls: layers bound to shapes and options met before (layer.py).
    """

    name: str
    device: str
    ops: Mapping[str, Kernel]
    tensors: bool = False
    whole: bool = False
    bounds: Mapping[str, Callable[..., Any]] = field(default_factory=dict)
    calls: dict[Any, Any] = field(default_factory=dict, init=False, repr=False, compare=False)


OPS = (
    "conv2d",
    "conv2d_grad_input",
    "conv2d_grad_weight",
    "conv2d_grad_bias",
    "max_pool2d",
    "max_pool2d_grad_input",
    "flatten",
    "flatten_grad_input",
    "linear",
    "linear_grad_input",
    "linear_grad_weight",
    "linear_grad_bias",
    "relu",
    "relu_grad_input",
    "softmax",
    "softmax_grad_input",
    "log_softmax",
    "log_softmax_grad_input",
    "cross_entropy",
    "cross_entropy_grad_input",
)
LOSS_OPS = ("cross_entropy", "cross_entropy_grad_input")
FUSED_OPS = {  # ops in one pass, where a variant gains by it, and what they stand for
    "conv2d_max_pool2d": ("conv2d", "max_pool2d"),
    "conv2d_relu": ("conv2d", "relu"),
    "linear_relu": ("linear", "relu"),
    "reduced_cross_entropy": LOSS_OPS,
    "reduced_cross_entropy_grad_input": LOSS_OPS,
}
EXACT_OPS = ("max_pool2d", "flatten", "relu")  # and their gradients: equal to torch's bit for bit

_BUILT_IN = {  # name: (module, device); slowest to fastest, the order of every table
    "interpreted": ("interpreted", "any"),
    "jit": ("jit", "cpu"),
    "jit-parallel": ("jit", "cpu"),
    "jit-static": ("static", "cpu"),
    "jit-tiled": ("tiled", "cpu"),
    "jit-winograd": ("winograd", "cpu"),
    "vector": ("vector", "any"),
    "cuda": ("cuda", "cuda"),
    "cuda-tiled": ("cuda", "cuda"),
    "torch": ("reference", "any"),
}
BEST = {"cpu": "jit-tiled", "cuda": "cuda-tiled"}
ENTRY_POINTS = "jitconv.variants"

_lock = threading.RLock()
_loaded: dict[str, Variant] = {}  # built-in ones appear when their module is first needed
_entry_points_read = False


def _read_entry_points() -> None:
    """Add what other packages offer, once: a Variant, or a function that returns one."""
    global _entry_points_read
    with _lock:
        if not _entry_points_read:
            _entry_points_read = True
            for entry in entry_points(group=ENTRY_POINTS):
                offered = entry.load()
                add(offered if isinstance(offered, Variant) else offered())


def names() -> tuple[str, ...]:
    """Return the names of all variants, slowest to fastest, then the added ones in the order they came."""
    _read_entry_points()
    return (*_BUILT_IN, *(name for name in _loaded if name not in _BUILT_IN))


def get(name: str) -> Variant:
    """Return the variant called `name`; ValueError names those there are."""
    _load(name)
    return _loaded[name]


def loaded(name: str | None) -> Variant | None:
    """Return the variant called `name` (None: the CPU's best) if it has been used before, and has kernels."""
    variant = _loaded.get(BEST["cpu"] if name is None else name)
    return None if variant is None or variant.whole else variant


@constant_while_compiling
def _load(name: str) -> None:
    """Import the variant's module at its first use; torch.compile runs this while it traces, and never looks inside."""
    if name not in _loaded:
        if name not in names():
            raise ValueError(f"variant must be one of {', '.join(names())}, got {name!r}")
        if name in _BUILT_IN:
            if _device(name) == "cuda" and importlib.util.find_spec("numba_cuda") is None:
                raise ValueError(f"variant {name!r} cannot be loaded: {missing('cuda')}")
            module = importlib.import_module(f"{__name__}.{_BUILT_IN[name][0]}")
            _loaded.update({variant.name: variant for variant in module.VARIANTS})


def missing(device: str) -> str | None:
    """Return what this machine lacks for the variants of `device`, in words; None where they can run."""
    if device != "cuda":
        return None
    if importlib.util.find_spec("numba_cuda") is None:
        return "numba-cuda is not installed: pip install 'jitconv[cuda]'"
    if not torch.cuda.is_available():
        return "torch sees no CUDA GPU (torch.cuda.is_available() is False)"
    return None


def available(device: str | None = None) -> tuple[str, ...]:
    """Return the names of the variants that can run on this machine, on `device` ("cpu" or "cuda") if given."""
    devices = [device] if device else ["cpu", "cuda"]
    devices = [each for each in devices if missing(each) is None]
    return tuple(name for name in names() if any(_device(name) in (each, "any") for each in devices))


def _device(name: str) -> str:
    """The device of a variant, without importing its module."""
    return _BUILT_IN[name][1] if name in _BUILT_IN else get(name).device


def add(variant: Variant) -> Variant:
    """Add a variant to the registry, in place of an added one of the same name; ValueError for a built-in's name."""
    if variant.name in _BUILT_IN:
        raise ValueError(f"name must not be a built-in variant's, got {variant.name!r}")
    with _lock:
        _loaded[variant.name] = variant
    return variant


def register_variant(name: str, base: str, **ops: Kernel) -> Variant:
    """Add a variant that computes the named ops with these kernels and every other op as `base` does.

    A kernel takes the arguments of the op of its name in `jitconv.variants.scalar` and fills the last ones.
    Raises ValueError for a built-in's name, an unknown base, or an op that the base does not have.
    """
    parent = get(base)
    for op, kernel in ops.items():
        if op not in parent.ops:
            raise ValueError(f"{op} must be an op of {base}, one of {', '.join(parent.ops)}")
        if not callable(kernel):
            raise TypeError(f"{op} must be a function, got {kernel!r}")
    fused = [op for op, parts in FUSED_OPS.items() if set(parts) & set(ops)]  # would not call the new kernels
    kept = {op: kernel for op, kernel in parent.ops.items() if op not in fused}
    bounds = {op: bound for op, bound in parent.bounds.items() if op not in ops}
    return add(replace(parent, name=name, ops={**kept, **ops}, bounds=bounds))


def resolve(variant: str | None, device: str) -> Variant:
    """Return the variant called `variant`, or the best one for `device`; ValueError if it cannot run there."""
    name = BEST.get(device, "torch") if variant is None else variant
    runs_on = _device(name)
    if runs_on not in (device, "any"):
        raise ValueError(
            f"variant {name!r} runs on {runs_on}, but input is on {device}: "
            + (missing(runs_on) or f"move it, or use one of {', '.join(available(device))}")
        )
    return get(name)
