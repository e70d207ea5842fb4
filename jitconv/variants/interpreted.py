"""`interpreted`: the equations run by the Python interpreter, on NumPy arrays or, slower still, on torch tensors."""

from jitconv.variants import OPS, Variant, scalar

VARIANTS = (Variant("interpreted", "any", {op: getattr(scalar, op) for op in OPS}, tensors=True),)
