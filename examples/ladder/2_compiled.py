"""In the way: an interpreter that looks up types and boxes numbers at each step. Here Numba compiles the same loops."""

from numba import njit
from rung import FOLDER, load, main

LAYERS = ("digits", "resnet")
PATIENCE = 0

conv2d = njit(fastmath={"contract", "reassoc", "nsz"}, error_model="numpy")(load(FOLDER / "1_interpreted.py").conv2d)


if __name__ == "__main__":
    main(__file__)
