"""relu at the end of a product: on what a worker has just computed of C, which is still in its cache."""

from jitconv.variants.jit import serial
from jitconv.variants.tiled.product import inner, offset_of

relu_at = serial.relu_at


@inner
def rectify(c, rows, columns):
    """C[m, j] = max(0, C[m, j]) for m of rows and j of columns, which begin with a block of columns or lie in one."""
    for m in range(rows[0], rows[1]):
        for j in range(columns[0], columns[1], c.columns.width):
            first = m * c.ld + offset_of(j, c.columns)
            block = c.numbers[first : first + min(c.columns.width, columns[1] - j)]
            for i in range(block.shape[0]):
                block[i] = relu_at(block, i)
