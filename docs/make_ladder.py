"""Writes ladder.md and its pictures: `python docs/make_ladder.py`; with --measure it first runs every rung and torch.

Or only the rungs that are named after that. Code comes from examples/ladder, numbers from ladder.json, which belong to
one run on one machine; tests/test_ladder.py checks that the page is current.
"""

import json
import sys
from pathlib import Path

DOCS = Path(__file__).parent
RUNGS = DOCS.parent / "examples" / "ladder"
RESULTS = DOCS / "ladder.json"
ROWS = DOCS.parent / "jitconv" / "variants" / "rows.py"
CODE = {"7_filters": ROWS}  # steps whose loops are the package's own
sys.path[:0] = [str(RUNGS), str(DOCS.parent)]

# rung: (title, the problem, what the machine code shows, the first and the last line of the code that is shown)
STEPS = {
    "1_interpreted": (
        "The equation, interpreted",
        "A convolution is a sum over channels and taps, the numbers of a filter, for every output. Python takes each "
        "multiply-add as a dozen calls: find the types, find the methods, make objects for the results.",
        "There is no machine code of ours: the processor runs the interpreter.",
        ("for n in", "out["),
    ),
    "2_compiled": (
        "Compiled",
        "Nothing about the loops says that they need an interpreter. Numba knows the types, so an index becomes an "
        "addition and a product one instruction.",
        "One scalar multiply-add an iteration, each waiting for the one before: nothing is vectorised.",
        ("conv2d = njit", "conv2d = njit"),
    ),
    "3_rows": (
        "Loops reordered: a row inside",
        "A sum is a chain, and a processor that could start many additions does one at a time. Neighbouring outputs "
        "do not depend on each other: if they are innermost, a register of them is computed at once.",
        "The loop over columns is vectorised, but every multiply-add also loads and stores the outputs.",
        ("for c in", "outputs[col]"),
    ),
    "4_taps": (
        "The taps of a line at once",
        "Each tap read the row of outputs and wrote it back. Written out side by side, the taps of one line of the "
        "filter share one load and one store.",
        "Several multiply-adds for each store. The compiler would not have fused the loops by itself.",
        ("w0, w1, w2, w3, w4", "outputs[col]"),
    ),
    "5_sizes": (
        "Told its sizes",
        "A loop of unknown length cannot vanish. Back to the equation's own loops, then, with all sizes as constants: "
        "as long as the taps are few, that is all the compiler needs.",
        "All taps of one channel are unrolled, each a multiply-add that loads its pixels; the loads beyond those are "
        "of weights. With many channels only the loop over channels is left to vectorise, and its numbers lie apart "
        "in memory: each is fetched on its own, which costs more than was gained.",
        ("def told", "out["),
    ),
    "6_registers": (
        "Sums in registers",
        "With a row of sums innermost there are vectors again, but the compiler unrolls short loops before it looks "
        "for vectors: a row unrolled first is so many statements, in which it sees no loop. Vectorised first it is a "
        "few instructions, and unrolled then, the sums stay in registers.",
        "Multiply-adds that load one factor each, and no stores: sums leave their registers when they are done. For "
        "one channel that was so in the step before.",
        ("sums = registers", "out["),
    ),
    "7_filters": (
        "Four filters share each load",
        "Every multiply-add loads a pixel, and a row has too few sums to keep the core busy, as each waits for the "
        "tap before. Four filters read the same pixels: four rows of sums for the loads of one.",
        "More multiply-adds than loads. No vector is written out anywhere: this is jit-static, loops only. Rows that "
        "the longest vectors do not divide get shorter ones, and a lower ceiling.",
        ("axpy(weight[0", "axpy(weight[3"),
    ),
    "8_tile": (
        "A register tile on explicit vectors",
        "Filters by pixels whose sums stay in registers are a register tile. The compiler finds it only when it is "
        "told all sizes, compiles each anew, and takes its vectors from the row. Written out, one tile serves all "
        "sizes, on the longest vectors there are.",
        "The same mix of instructions on longer vectors. What that gains, nothing where a core multiplies them half by "
        "half, is lost again: an image is read as one line, so some columns are computed and thrown away, and the "
        "sums are copied to where they belong.",
        ("tile = zeros", "store("),
    ),
    "9_shifts": (
        "Shifted copies instead of wasted columns",
        "For each column of taps the image is copied once, shifted by it, in lines as wide as the output. A tap is "
        "then one copy from one line on, every lane of a tile is an output, and sums go where they belong at once.",
        "The product's loop of jit-tiled. The copies cost less than the wasted columns did, but the compiler's own "
        "tile of this layer stays ahead. They pay with more filters, and where tiles are to hold whole windows of a "
        "pooling.",
        ("z = out if", "ops["),
    ),
    "10_blocked": (
        "Blocked channels",
        "With many filters a register can hold one output pixel of as many filters as it has lanes: every image width "
        "fits, no column is wasted, no pixel copied. Images stay in that layout from layer to layer, and weights are "
        "packed once, so neither is timed; the next steps take images as they are.",
        "One load of weights serves many pixels, each a number that its multiply-add spreads to all lanes.",
        ("kernel = bind", "kernel(blocked"),
    ),
    "11_pooling": (
        "Pooling in registers",
        "The convolution's result is the largest array of the network, written by one layer and read once by the "
        "next. A tile that holds whole windows keeps only their maxima.",
        "Three maxima of registers for each four sums, and a quarter of the stores.",
        ("size =", "get("),
    ),
    "12_winograd": (
        "Winograd",
        "What is left are the equation's multiplications. Transformed tiles of pixels and filters need fewer of them, "
        "and lose some precision: the error allowed is a wider one, and the variant has to be asked for. "
        "[winograd_by_hand.py](../examples/ladder/winograd_by_hand.py) shows how, for tiles of two by two outputs.",
        "The products run as any others; the transforms are additions of registers. Flops are counted as the equation "
        "has them, so the share can exceed one.",
        ("kernel = get", "kernel(x"),
    ),
    "13_plan": (
        "The plan: the network as one call",
        "A layer's call is checked, led to a kernel and given memory, and the next layer reads what it left there. "
        "For one image that takes nearly as long as everything else.",
        "The same kernels, convolution and pooling in one. Their arguments were written down when the plan was made, "
        "and one loop runs them all. Most of what is left is reading the weights of the first linear layer.",
        ("plan = ", "cache.update"),
    ),
}
BEFORE = "The layers one by one"
NAMES = {"digits": "1→20", "pooled": "1→20 and pooling", "resnet": "64→64", "network": "the network, one image"}
HEAD = (
    "| step | layer | ms | GFLOP/s | share of peak | speed-up over the last step with this layer |\n"
    "|---|---|---|---|---|---|"
)
LOOP = "| layer | vector multiply-adds | loads | stores |\n|---|---|---|---|"
LAYER = "| layer | in full |\n|---|---|"
MEASURE = "python docs/make_ladder.py --measure"
START = """# The ladder

From the equation, interpreted, to what the best libraries reach, one step at a time. Every step is a file of
[examples/ladder](../examples/ladder) that runs alone, and says what was in the way and what changes. Two layers
climb, the convolution of the digits, of one channel, and one from the middle of a ResNet, of many; at the end the
first with its pooling, and the whole network.

{layers}

All numbers are from one run on one core{machine}, written by [make_ladder.py](make_ladder.py) from
[ladder.json](ladder.json). The peak is what multiply-adds on numbers in registers reach on that core. Before a step is
timed its result is compared with torch's in double precision. The first step computes one image; its time is scaled up.
A multiply-add counts as two operations, and only those of the equation count.

A vector register holds several numbers, one in each of its lanes, and a vector multiply-add computes with all of them
at once. A core starts one or two of them each cycle and takes several cycles for each: unless several registers of
sums are under way, it waits. Counts of instructions are of the innermost loop with most of these, from the machine
code; loads inside a multiply-add count too. `python -m benchmarks.instructions` counts those of the package itself.

[kernels.md](kernels.md) goes on: how the package's own kernels do it, gradients, other layers and GPUs included."""
LEARNED = """## What we learned

- **The compiler alone** removes the interpreter, unrolls what it knows the length of, and vectorises an innermost loop.
  Told all sizes, and given a row of sums for each of four filters, it finds a register tile: for a single channel the
  one that is written out is no faster.

- **Explicit vectors** are for code that serves every size, for channels in the lanes, and for pooling in registers.

- **The compiler gives up** on outer loops, and on short loops that were unrolled too early. It shares loads between
  filters only where their sums are arrays of their own with names of their own.

- **Which step matters depends on the layer**: sizes bring a single channel to torch's time at once, and for many
  channels hurt until the sums stay in registers. There a row innermost and sums in registers are most of the way,
  then come the layout, and Winograd.

- **What did not work**: sums of several filters in one array on the stack are not split into registers; four arrays
  are. Rows that are no whole number of vectors were left scalar: now the last vectors overlap those before. Testing
  each pixel for the padding inside the row keeps the row out of registers. Without sizes the row's sums stay in
  memory, and the gradients become slower than one output at a time.

- **The equation's own order is not always the loop's**: the gradient of pooling asked each pixel for its windows. Each
  window giving to its pixel is many times as fast, interpreted too.

- **Dropped by measurement**: weights packed for layers of few filters, wider tiles, and the matrix of all windows
  written out (im2col).
"""


PICTURES = {  # (rows, columns) of the pixels read and of the outputs written at a time, and how many planes of each
    "1_interpreted": ((2, 3), (3, 4), (1, 2), (2, 3), 1, 1),
    "2_compiled": ((2, 3), (3, 4), (1, 2), (2, 3), 1, 1),
    "3_rows": ((2, 3), (1, 7), (1, 2), (0, 6), 1, 1),
    "4_taps": ((2, 3), (0, 8), (1, 2), (0, 6), 1, 1),
    "5_sizes": ((1, 4), (0, 8), (1, 2), (0, 6), 1, 1),
    "6_registers": ((1, 4), (0, 8), (1, 2), (0, 6), 3, 1),
    "7_filters": ((1, 4), (0, 8), (1, 2), (0, 6), 3, 4),
    "8_tile": ((2, 3), (1, 7), (1, 2), (0, 6), 1, 4),
    "9_shifts": ((0, 8), (1, 7), (0, 6), (0, 6), 3, 4),
    "10_blocked": ((1, 4), (2, 5), (1, 2), (1, 5), 4, 4),
    "11_pooling": ((0, 4), (0, 8), (0, 2), (0, 6), 1, 4),
    "12_winograd": ((1, 5), (1, 5), (1, 3), (1, 3), 4, 4),
    "13_plan": ((0, 8), (0, 8), (0, 6), (0, 6), 1, 4),
}
CELL, GAP = 14, 5


def picture(stem):
    """An SVG: what a step reads of the pixels (left) and what it computes of the outputs (right) at a time."""
    rows, columns, out_rows, out_columns, inputs, outputs = PICTURES[stem]
    left, right = (
        _planes(0, 8, inputs, rows, columns, "#2a78c2"),
        _planes(200, 6, outputs, out_rows, out_columns, "#d9822b"),
    )
    names = '<text x="0" y="158">pixels read</text><text x="200" y="158">outputs computed at a time</text>'
    style = "font-family:sans-serif;font-size:12px"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="-2 -2 390 166" style="{style}">{left}{right}{names}</svg>\n'
    )


def _planes(x, side, count, rows, columns, color):
    cells = []
    for plane in reversed(range(count)):
        for row in range(side):
            for column in range(side):
                used = rows[0] <= row < rows[1] and columns[0] <= column < columns[1]
                place = f'x="{x + plane * GAP + column * CELL}" y="{plane * GAP + row * CELL}"'
                fill = color if used else "#f4f4f4"
                cells.append(
                    f'<rect {place} width="{CELL}" height="{CELL}" fill="{fill}" stroke="#999" stroke-width=".5"/>'
                )
    return "".join(cells)


def excerpt(stem, first, last):
    """The lines of a step from the first that begins with `first` to the next that begins with `last`."""
    lines = CODE.get(stem, RUNGS / f"{stem}.py").read_text().splitlines()
    start = next(i for i, line in enumerate(lines) if line.strip().startswith(first))
    stop = next(
        i for i in range(start, len(lines)) if lines[i].strip().startswith(last) and (i > start or first == last)
    )
    shown = lines[start : stop + 1]
    margin = min(len(line) - len(line.lstrip()) for line in shown if line)
    return "\n".join(line[margin:] for line in shown)


def row_of(name, layer, found, peak, before):
    rate = found["flops"] / found["seconds"]
    factor = digits(before / found["seconds"]) if before else ""
    time = digits(found["seconds"] * 1e3)
    return f"| {name} | {layer} | {time} | {digits(rate / 1e9)} | {rate / peak:.1%} | {factor} |"


def digits(value):
    """Three of them, without an exponent."""
    return f"{float(f'{value:.3g}'):.12g}"


def lacking(results):
    """What ladder.json does not have of what the page shows."""
    import rung

    keys = ("cpu", "peak", "torch")
    layers = [(file.stem, layer) for file in rung.rungs() for layer in rung.load(file).LAYERS]
    rows = [f"{stem} of {layer}" for stem, layer in layers if layer not in results["rungs"].get(stem, {})]
    return [key for key in keys if key not in results] + rows


def render(results):
    """The whole page; without the machine's name and torch's rows where they were not measured."""
    import rung

    peak = results["peak"]
    last: dict[str, tuple[str, dict]] = {}
    table, steps = [HEAD], []
    for stem, (title, problem, code, span) in STEPS.items():
        own = []
        for layer, found in results["rungs"][stem].items():
            if "before" in found:
                last[layer] = BEFORE, found["before"]
                table.append(row_of(BEFORE, NAMES[layer], found["before"], peak, None))
            known = last.get(layer)
            row = row_of(title, NAMES[layer], found, peak, known and known[1]["seconds"])
            table.append(row)
            own += [row_of(known[0], NAMES[layer], known[1], peak, None), row] if known else [row]
            last[layer] = title, found
        loops = [(NAMES[layer], found["loop"]) for layer, found in results["rungs"][stem].items() if "loop" in found]
        counts = [f"| {layer} | {l['multiply_adds']} | {l['loads']} | {l['stores']} |" for layer, l in loops]
        file, text = f"examples/ladder/{stem}.py", [f"## {title}", f"![{title}](ladder/{stem}.svg)", problem]
        text += [f"```python\n{excerpt(stem, *span)}\n```", f"**The machine code.** {code}"]
        text += ["\n".join([LOOP, *counts])] if counts else []
        steps.append("\n\n".join([*text, "\n".join([HEAD, *own]), f"Run it: [`python {file}`](../{file})"]))
    table += [row_of("torch", NAMES[layer], found, peak, None) for layer, found in results.get("torch", {}).items()]
    table.append(f"| the core's peak | multiply-adds in registers |  | {digits(peak / 1e9)} | 100.0% |  |")
    layers = [LAYER, *(f"| {name} | {rung.NAMES[layer]} |" for layer, name in NAMES.items())]
    machine = f" ({results['cpu']})" if "cpu" in results else ""
    start = START.format(layers="\n".join(layers), machine=machine)
    return "\n\n".join([start, "\n".join(table), *steps, LEARNED])


def measure(stems=()):
    """Run every rung and torch, or only the rungs that are named."""
    import rung

    from benchmarks.instructions import innermost
    from jitconv import machine

    found = json.loads(RESULTS.read_text()) if stems else {"cpu": machine.cpu_name(), "peak": rung.peak(), "rungs": {}}
    flops = {}
    for file in rung.rungs():
        if stems and file.stem not in stems:
            continue
        module, rows = rung.load(file), found["rungs"].setdefault(file.stem, {})
        rows.clear()
        for layer in module.LAYERS:
            row = rows[layer] = rung.measure(module, layer)
            flops[layer] = row["flops"]
            function = compiled(file.stem, module, layer, rung.arrays(layer))
            if function is not None:
                loops = [loop for code in function.inspect_asm().values() for loop in innermost(code)]
                best = max(loops, default=None, key=lambda loop: loop.multiply_adds)
                if best is not None:
                    counts = {"multiply_adds": best.multiply_adds, "loads": best.loads + best.broadcasts}
                    row["loop"] = counts | {"stores": best.stores}
            print(file.stem, layer, row, flush=True)
    if not stems:
        found["torch"] = {layer: {"seconds": rung.torch_seconds(layer), "flops": flops[layer]} for layer in NAMES}
        print("torch", found["torch"])
    RESULTS.write_text(json.dumps(found, indent=1) + "\n")


def compiled(stem, module, layer, arrays):
    """The function whose machine code is a rung's for a layer; None if it is the package's or another layer's."""
    if stem in ("2_compiled", "3_rows", "4_taps"):
        return module.conv2d if layer == module.LAYERS[0] else None
    if stem == "8_tile":
        return module.tiles
    x, weight, _, out = arrays
    if stem in ("5_sizes", "6_registers"):
        return module.told(*out.shape[:2], weight.shape[1], *out.shape[2:], weight.shape[3])
    if stem == "7_filters":
        from jitconv.variants import static
        from jitconv.variants.workers import ALONE

        function = static.compile_for("conv2d", [(a.shape, a.dtype) for a in arrays], module.ONCE, cache=False)
        function(ALONE, 1, *arrays)
        return function
    return None


def main(arguments):
    if "--measure" in arguments:
        measure(arguments[arguments.index("--measure") + 1 :])
    results = json.loads(RESULTS.read_text())
    if missing := lacking(results):
        print(f"ladder.json lacks {', '.join(missing)}. On a quiet machine: {MEASURE}", file=sys.stderr)
    (DOCS / "ladder").mkdir(exist_ok=True)
    for stem in STEPS:
        (DOCS / "ladder" / f"{stem}.svg").write_text(picture(stem))
    (DOCS / "ladder.md").write_text(render(results))


if __name__ == "__main__":
    main(sys.argv[1:])
