"""`cuda` and `cuda-tiled`: the layers on NVIDIA GPUs. The only package that imports numba.cuda.

sizes.py says how many threads do how much, launch.py how a kernel gets onto the GPU, quads.py how it reads four numbers
at once, teams.py how threads share a sum. grid.py is `cuda`; tiled.py says which file has which layer of `cuda-tiled`.
"""

from jitconv.variants.cuda import grid, tiled

VARIANTS = (grid.VARIANT, tiled.VARIANT)
