"""`jit` and `jit-parallel`: the equations compiled by Numba, for one core and for all of them."""

from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

from jitconv.variants import EXACT_OPS, OPS, Variant, scalar
from jitconv.variants.compiling import EXACT, FAST, inner, multiply_add, njit, specialise
from jitconv.variants.threads import Kernel

DESCENTS = ("sgd", "sgd_momentum")  # steps of jitconv.optim: no layers, so no ops of a variant


def _compile(function: Callable[..., None], how: Callable[..., Any] = njit, **options: Any) -> Any:
    exact = function.__name__.startswith((*EXACT_OPS, *DESCENTS))
    return how(function, fastmath=EXACT if exact else FAST, **options)


# Without forced inlining, calling a body costs as much as its arithmetic.
_body = partial(_compile, how=inner, forceinline=True)


def _compiled(tag: str, **options: Any) -> SimpleNamespace:
    return specialise(scalar, tag, _body, partial(_compile, **options), multiply_add=multiply_add)


serial = _compiled("jit")
_parallel = _compiled("jit_parallel", parallel=True)

VARIANTS = (
    Variant("jit", "cpu", {op: getattr(serial, op) for op in OPS}),
    Variant("jit-parallel", "cpu", {op: Kernel(getattr(serial, op), getattr(_parallel, op)) for op in OPS}),
)

DESCENT = {step: Kernel(getattr(serial, step), getattr(_parallel, step)) for step in DESCENTS}
