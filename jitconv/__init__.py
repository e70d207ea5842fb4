"""jitconv: how far plain loops go once they are compiled. Layers of a convolutional network, in a ladder of variants.

Names are loaded when they are first used, so that importing this package compiles nothing and costs nothing.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jitconv import data, functional, nn, variants
    from jitconv.model import SimpleConvNet
    from jitconv.plan import plan
    from jitconv.variants import Variant, available, register_variant
    from jitconv.verify import diff_mse
    from jitconv.warming import warmup

__version__ = "0.1.0"
__all__ = [
    "SimpleConvNet",
    "Variant",
    "available",
    "data",
    "diff_mse",
    "functional",
    "nn",
    "plan",
    "register_variant",
    "variants",
    "warmup",
]

_HOMES = {
    "SimpleConvNet": "model",
    "Variant": "variants",
    "available": "variants",
    "register_variant": "variants",
    "diff_mse": "verify",
    "warmup": "warming",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name in _HOMES:
        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    return importlib.import_module(f"{__name__}.{name}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
