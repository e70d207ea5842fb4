"""The ladder rung by rung: what each changes, what it bought on one layer, and its own source."""

import ast
import io
import keyword
import math
import textwrap
import tokenize
from importlib.resources import files
from inspect import getblock
from pathlib import Path
from typing import Any, NamedTuple

from markupsafe import Markup, escape

from jitconv.report.read import OURS, PLAN, Results, Row, marked
from jitconv.report.words import colour, cores, digits, named, percent, seconds, times

LAYER = {"group": "layers", "layer": "conv2d", "quantity": "forward"}
NETWORK = {"group": "network", "quantity": "forward"}
OF_RESNET = {"group": "resnet", "quantity": "forward", "work": "ResNet 64→64 3×3/1 at 56×56, 8"}
IMAGES = (1, 8, 64)
LADDER_LAYERS = {  # the layers of examples/ladder, by their names there
    "digits": "1→20, 5×5, 64 images of 28×28",
    "resnet": "64→64, 3×3, 8 images of 56×56",
    "pooled": "1→20 and 2×2 pooling",
    "network": "SimpleConvNet, 1 image",
}


class Rung(NamedTuple):
    """A rung: the variant, the rung it is compared with, what changed, and the functions of a file that show it.

    marked: a line that contains one of these words is the one to look at. where: the rows that are shown. span: of the
    functions what is shown, from the first line that contains the one to the next that contains the other.
    """

    variant: str
    over: str
    say: str
    file: str
    names: tuple[str, ...]
    marked: tuple[str, ...] = ()
    where: dict[str, str] = LAYER
    span: tuple[str, str] = ("", "")


SMALL_FILES = Path(__file__).parents[2] / "examples" / "ladder"  # in a clone; the package has none
BESIDE = ("vector", "torch")  # are shown with the rungs and are none
RUNGS = (
    Rung(
        "interpreted-numpy",
        "",
        "The equation as it stands: three nested loops add up one output, and each multiply-add passes "
        "through the interpreter.",
        "variants/scalar.py",
        ("conv2d_at",),
        ("channel = channel + x[",),
        span=("z = bias", "z = z + channel"),
    ),
    Rung(
        "jit",
        "interpreted-numpy",
        "The same source compiled by Numba, with the body inlined: an index becomes an addition, but "
        "all additions form one chain, each waiting for the one before. The loops over outputs are shown here "
        "(prange is range in them); what they call, conv2d_at, is the rung before.",
        "variants/scalar.py",
        ("conv2d",),
        ("conv2d_at(",),
        span=("for plane", "out["),
    ),
    Rung(
        "jit-parallel",
        "jit",
        "The outermost loop is shared out to the cores; every output has one writer, so the order does not matter. A "
        "plane, one channel of one image, is the smallest portion, and one image has few. On one core it is jit's own "
        "code; on several, each core has its range of planes in a copy of the loop that is compiled for that.",
        "variants/scalar.py",
        ("conv2d",),
        ("prange",),
        span=("for plane", "out["),
    ),
    Rung(
        "jit-static",
        "jit",
        "Plain loops still, now along a row of outputs and for four filters at a time, compiled anew for each set "
        "of sizes, which are constants: short loops unroll, the tests for padding vanish, and sums stay in vector "
        "registers.",
        "variants/rows.py",
        ("convolve_row",),
        ("axpy(",),
        span=("for i in", "axpy(weight[3"),
    ),
    Rung(
        OURS,
        "jit",
        "Rows of two vector registers hold a tile of the output while all terms of the sum are added: each value "
        "loaded feeds many multiply-adds. This is no plain loop any more.",
        "variants/tiled/product.py",
        ("_tiles",),
        ("fma_outer(tile, numbers", "for q in range"),
        span=("tile, last = zeros", "fma_outer("),
    ),
    Rung(
        "jit-winograd",
        OURS,
        "3×3 convolutions with fewer multiplications than the equation has, at the price of larger rounding "
        "errors, which have a bound of their own. It has nothing to do in this network, whose filters are 5×5: shown "
        "is ResNet-18's convolution of 64 to 64 channels at 56×56. Products that are saved count as done, so its share "
        "of the peak may exceed the whole.",
        "variants/winograd/kernels.py",
        ("_products",),
        ("_register_tile(",),
        OF_RESNET,
        ("for height in", "_register_tile("),
    ),
    Rung(
        PLAN,
        OURS,
        "The whole network captured once, fused, and run by one call on arrays made beforehand: below, its "
        "forward of the whole network. It gains what lies between kernels: there nothing is checked, nothing is "
        "allocated, and pooling is done in registers by the convolution before it, which the code here sees to.",
        "plan/rewrite.py",
        ("fuse_max_pool",),
        ("nodes.conv2d_max_pool2d, args",),
        NETWORK,
        ("for node in", "origin=origin + "),
    ),
    Rung(
        "vector",
        "interpreted-numpy",
        "The other way up: no loop over images or pixels at all, im2col and one product by the BLAS library.",
        "variants/vector.py",
        ("im2col",),
        ("columns[:, :, k]",),
        span=("planes, image", "columns[:, :, k]"),
    ),
    Rung(
        "torch",
        "interpreted-numpy",
        "torch.nn.functional: what all are checked against, and the unit of speed.",
        "",
        (),
    ),
)


def ladder(results: Results) -> list[dict[str, Any]]:
    """Return the rungs in order, those of the registry that have no text of their own after the others."""
    known = [rung.variant for rung in RUNGS]
    measured = {row.variant for row in results.pick(**LAYER)}
    others = [
        Rung(name, "jit", "", "", ())
        for name in results.order
        if name in measured and name not in (*known, "interpreted") and not name.startswith("cuda")
    ]
    cards, number = [_card(results, rung) for rung in (*RUNGS, *others)], 0
    for card, rung in zip(cards, (*RUNGS, *others), strict=True):
        number += rung.variant not in BESIDE
        card["number"] = "" if rung.variant in BESIDE else number
    return cards


def _card(results: Results, rung: Rung) -> dict[str, Any]:
    lines = []
    for batch in IMAGES:
        for threads in results.lanes:
            row = results.one(**rung.where, variant=rung.variant, batch=batch, threads=threads)
            over = rung.over if threads == 1 else rung.variant  # several cores are compared with one of the same
            before = results.one(**rung.where, variant=over, batch=batch, threads=1) if over else None
            if row:
                over_one = " over one core" * (threads > 1 and before is not None)
                lines.append(_line(results, row, before) | {"over": over_one})
    text = code_of(rung)
    return {
        "name": named(rung.variant),
        "say": rung.say,
        "over": named(rung.over),
        "lines": lines,
        "file": f"jitconv/{rung.file}" if text else "",
        "code": coloured(text, rung.marked) if text else "",
        "colour": colour(rung.variant),
        "loops": _loops(results) if rung.variant == OURS else [],
        "loops_say": _loops_say(results) if rung.variant == OURS else "",
    }


def _line(results: Results, row: Row, before: Row | None, images: int = 0) -> dict[str, Any]:
    """Return a row as shown; its time scaled up where it has fewer than `images`."""
    scale = images / row.batch if images > row.batch else 1
    rate = row.flops / row.seconds
    share = rate / (results.peak() * row.threads)
    lane = "" if row.threads == 1 else f", {cores(row.threads)}"
    return {
        "what": f"{row.batch} image{'s' * (row.batch > 1)}{lane}",
        "time": seconds(scale * row.seconds),
        "scaled": f", from {row.batch} image{'s' * (row.batch > 1)}" if scale > 1 else "",
        "factor": times(rate * before.seconds / before.flops) + marked(row, before) if before else "",
        "rate": digits(rate / 1e9, 2),
        "share": "" if math.isnan(share) else percent(share),
        "width": 0 if math.isnan(share) else min(100, 100 * share),
        "flags": ", ".join(row.flags),
    }


def small(results: Results) -> dict[str, Any]:
    """Return the runnable rungs of examples/ladder: a line a file, with its times and the file as it stands."""
    rows = {(row.variant, row.work): row for row in results.pick(group="ladder", threads=1)}
    works = [name for name in LADDER_LAYERS if any(work == name for _, work in rows)]
    images = {work: max(row.batch for (_, name), row in rows.items() if name == work) for work in works}
    before: dict[str, Row] = {}
    lines = []
    for name in sorted({name for name, _ in rows}, key=lambda name: int(name.partition("_")[0])):
        file = SMALL_FILES / f"{name}.py"
        text = file.read_text(encoding="utf-8") if file.is_file() else ""
        said = (ast.get_docstring(ast.parse(text)) or "") if text else ""
        cells = []
        for work in works:
            row = rows.get((name, work))
            cells.append(row and _line(results, row, before.get(work), images[work]))
            before |= {work: row} if row else {}
        say = " ".join(said.partition("\n\n")[0].split())
        lines.append({"name": name, "say": say, "cells": cells, "code": coloured(text, ()) if text else ""})
    return {"columns": [LADDER_LAYERS[work] for work in works], "lines": lines, "note": _compiled_twice(results, rows)}


def _compiled_twice(results: Results, rows: dict[tuple[str, str], Row]) -> str:
    """Why rung 2 here and `jit` have different times of the same layer."""
    mine, here = results.one(**LAYER, variant="jit", batch=64, threads=1), rows.get(("2_compiled", "digits"))
    if mine is None or here is None:
        return ""
    return (
        f"2_compiled and jit are the same loops, but jit's ask at each step whether padding is met, and know stride, "
        f"dilation and groups: {mine.shown} where 2_compiled, whose images bring their zeros along, takes {here.shown}."
    )


def _loops(results: Results) -> list[dict[str, Any]]:
    return [
        each | {"each": digits((each["broadcasts"] + each["loads"]) / each["multiply_adds"], 2)}
        for each in results.instructions
    ]


def _loops_say(results: Results) -> str:
    """What the innermost loops have in common, from their counts."""
    if not results.instructions:
        return ""
    each = [(loop["broadcasts"] + loop["loads"]) / loop["multiply_adds"] for loop in results.instructions]
    low, high = digits(min(each), 2), digits(max(each), 2)
    stores = sum(loop["stores"] for loop in results.instructions)
    kept = "and nothing is stored: the sums stay in registers" if stores == 0 else f"and {stores} stores in all"
    return (
        f"{low if low == high else f'{low} to {high}'} loads for each multiply-add, broadcasts (one number into all "
        f"lanes) counted, so a load feeds {digits(1 / max(each), 2)} multiply-adds and more; {kept}."
    )


def code_of(rung: Rung) -> str:
    """Return the lines of source that a rung shows, moved to the left; "" where the package has no such file."""
    text = source(rung.file, rung.names) if rung.names else ""
    lines = text.splitlines()
    start = next((i for i, line in enumerate(lines) if rung.span[0] in line), 0)
    stop = next((i for i, line in enumerate(lines) if i > start and rung.span[1] in line), len(lines))
    return textwrap.dedent("\n".join(lines[start : stop + 1] if rung.span[1] else lines) + "\n") if text else ""


def source(file: str, names: tuple[str, ...]) -> str:
    """Return functions of a file of the package, by name, as they stand; "" where there are none."""
    path = files("jitconv") / file
    if not path.is_file():
        return ""
    text = path.read_text(encoding="utf-8")
    lines, parts = text.splitlines(keepends=True), []
    for node in ast.parse(text).body:
        if isinstance(node, ast.FunctionDef) and node.name in names:
            first = min([node.lineno, *(each.lineno for each in node.decorator_list)])
            parts.append("".join(getblock(lines[first - 1 :])))
    return "\n".join(part.rstrip("\n") + "\n" for part in parts)


def coloured(text: str, marked: tuple[str, ...]) -> Markup:
    """Return Python as HTML: comments and docstrings soft, keywords strong, lines that contain `marked` in a <mark>."""
    starts = [0]
    for line in text.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    out, at = [], 0
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        soft = token.type == tokenize.COMMENT or (token.type == tokenize.STRING and token.string.startswith('"""'))
        if not soft and not (token.type == tokenize.NAME and keyword.iskeyword(token.string)):
            continue
        begin, end = (starts[row - 1] + column for row, column in (token.start, token.end))
        tag = "i" if soft else "b"
        pieces = str(escape(text[begin:end])).split("\n")  # a tag must not span lines, which <mark> wraps
        out += [str(escape(text[at:begin])), "\n".join(f"<{tag}>{piece}</{tag}>" for piece in pieces)]
        at = end
    shown = "".join([*out, str(escape(text[at:]))]).rstrip("\n").split("\n")
    plain = text.rstrip("\n").split("\n")
    return Markup(
        "\n".join(
            f"<mark>{line}</mark>" if any(word in plain[i] for word in marked) else line for i, line in enumerate(shown)
        )
    )
