"""relu at the end of a product: on the part of C that a core has just computed, which is still in its cache."""

from jitconv.variants.jit import serial
from jitconv.variants.tiled.product import inner, place_of

relu_at = serial.relu_at


@inner
def rectify(c, rows, columns):
    """C[m, j] = max(0, C[m, j]) for m of rows and j of columns, which begin with a run or lie in one."""
    for m in range(rows[0], rows[1]):
        for j in range(columns[0], columns[1], c.places.width):
            start = m * c.ld + place_of(j, c.places)
            run = c.numbers[start : start + min(c.places.width, columns[1] - j)]
            for i in range(run.shape[0]):
                run[i] = relu_at(run, i)
