"""`jit-tiled`: for now what `jit-parallel` is; flatten is a view."""

from dataclasses import replace

from jitconv.variants import get

_base = get("jit-parallel")
VARIANTS = (replace(_base, name="jit-tiled", ops={k: v for k, v in _base.ops.items() if not k.startswith("flatten")}),)
