"""The ladder rung by rung: what each changes, what it bought on one layer, and its own source."""

import ast
import io
import keyword
import math
import tokenize
from importlib.resources import files
from inspect import getblock
from pathlib import Path
from typing import Any, NamedTuple

from markupsafe import Markup, escape

from jitconv.report.read import OURS, PLAN, Results, Row
from jitconv.report.words import colour, cores, digits, named, percent, seconds, times

LAYER = {"group": "layers", "layer": "conv2d", "quantity": "forward"}
NETWORK = {"group": "network", "quantity": "forward"}
OF_RESNET = {"group": "resnet", "quantity": "forward", "work": "ResNet 64→64 3×3/1 at 56×56, 8"}
IMAGES = (1, 8, 64)
SMALL = {  # the layers of examples/ladder, by their names there
    "digits": "1→20, 5×5, 64 images of 28×28",
    "resnet": "64→64, 3×3, 8 images of 56×56",
    "pooled": "1→20 and 2×2 pooling",
    "network": "SimpleConvNet, 1 image",
}


class Rung(NamedTuple):
    """A rung: the variant, the rung it is compared with, what changed, and the functions of a file that show it.

    marked: a line that contains one of these words is the one to look at. where: the rows that are shown.
    """

    variant: str
    over: str
    say: str
    file: str
    names: tuple[str, ...]
    marked: tuple[str, ...] = ()
    where: dict[str, str] = LAYER


RUNGS = (
    Rung(
        "interpreted-numpy",
        "",
        "The equation as it stands: three nested loops add up one output, and each multiply-add passes "
        "through the interpreter.",
        "variants/scalar.py",
        ("conv2d_at",),
        ("channel = channel + x[",),
    ),
    Rung(
        "jit",
        "interpreted-numpy",
        "The same source compiled by Numba, with the body inlined: an index becomes an addition, but "
        "all additions form one chain, each waiting for the one before.",
        "variants/jit.py",
        ("_compile", "_body"),
        ("forceinline",),
    ),
    Rung(
        "jit-parallel",
        "jit",
        "The outermost loop is shared out to the cores; every output has one writer, so the order does not matter.",
        "variants/scalar.py",
        ("conv2d",),
        ("prange",),
    ),
    Rung(
        "jit-static",
        "jit",
        "Plain loops still, now along a row of outputs and for four filters at a time, compiled for each geometry with "
        "all sizes as constants: short loops unroll, the tests for padding vanish, and sums stay in vector registers.",
        "variants/rows.py",
        ("convolve_row",),
        ("axpy(",),
    ),
    Rung(
        OURS,
        "jit",
        "Rows of two vector registers hold a tile of the output while all terms of the sum are added: each value "
        "loaded feeds many multiply-adds. This is no plain loop any more.",
        "variants/tiled/product.py",
        ("_tiles",),
        ("fma_outer(", "for q in range"),
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
        (),
        OF_RESNET,
    ),
    Rung(
        PLAN,
        OURS,
        "The whole network captured once, fused, and run by one call on arrays made beforehand: below, its "
        "forward of the whole network.",
        "plan/program.py",
        ("Frame.run",),
        ("function(*args)",),
        NETWORK,
    ),
    Rung(
        "vector",
        "interpreted-numpy",
        "The other way up: no loop over images or pixels at all, im2col and one product by the BLAS library.",
        "variants/vector.py",
        ("_columns", "im2col"),
        (),
    ),
    Rung("torch", "interpreted-numpy", "torch.nn.functional: the oracle, and the unit of speed.", "", ()),
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
    return [_card(results, rung) for rung in (*RUNGS, *others)]


def _card(results: Results, rung: Rung) -> dict[str, Any]:
    lines = []
    for batch in IMAGES:
        for threads in results.lanes:
            row = results.one(**rung.where, variant=rung.variant, batch=batch, threads=threads)
            before = results.one(**rung.where, variant=rung.over, batch=batch, threads=1) if rung.over else None
            if row:
                lines.append(_line(results, row, before))
    text = source(rung.file, rung.names) if rung.names else ""
    return {
        "name": named(rung.variant),
        "say": rung.say,
        "over": named(rung.over),
        "lines": lines,
        "file": f"jitconv/{rung.file}" if text else "",
        "code": coloured(text, rung.marked) if text else "",
        "colour": colour(rung.variant),
        "loops": _loops(results) if rung.variant == OURS else [],
    }


def _line(results: Results, row: Row, before: Row | None) -> dict[str, Any]:
    rate = row.flops / row.seconds
    share = rate / (results.peak() * row.threads)
    lane = "" if row.threads == 1 else f", {cores(row.threads)}"
    return {
        "what": f"{row.batch} image{'s' * (row.batch > 1)}{lane}",
        "time": seconds(row.seconds),
        "factor": times(rate * before.seconds / before.flops) if before else "",
        "rate": digits(rate / 1e9, 2),
        "share": "" if math.isnan(share) else percent(share),
        "width": 0 if math.isnan(share) else min(100, 100 * share),
        "flags": ", ".join(row.flags),
    }


def small(results: Results) -> dict[str, Any]:
    """Return the runnable rungs of examples/ladder: a line a file, with its times and the file as it stands."""
    rows = {(row.variant, row.work): row for row in results.pick(group="ladder", threads=1)}
    works = [name for name in SMALL if any(work == name for _, work in rows)]
    folder = Path(__file__).parents[2] / "examples" / "ladder"
    before: dict[str, Row] = {}
    lines = []
    for name in sorted({name for name, _ in rows}, key=lambda name: int(name.partition("_")[0])):
        file = folder / f"{name}.py"
        text = file.read_text(encoding="utf-8") if file.is_file() else ""
        said = (ast.get_docstring(ast.parse(text)) or "") if text else ""
        cells = []
        for work in works:
            row = rows.get((name, work))
            cells.append(row and _line(results, row, before.get(work)))
            before |= {work: row} if row else {}
        say = " ".join(said.partition("\n\n")[0].split())
        lines.append({"name": name, "say": say, "cells": cells, "code": coloured(text, ()) if text else ""})
    return {"columns": [SMALL[work] for work in works], "lines": lines, "note": _compiled_twice(results, rows)}


def _compiled_twice(results: Results, rows: dict[tuple[str, str], Row]) -> str:
    """Why rung 2 here and `jit` have different times of the same layer."""
    mine, here = results.one(**LAYER, variant="jit", batch=64, threads=1), rows.get(("2_compiled", "digits"))
    if mine is None or here is None:
        return ""
    return (
        f"2_compiled and jit are the same loops, but jit's ask at each step whether padding is met, and know stride, "
        f"dilation and groups: {seconds(mine.seconds)} where 2_compiled, whose images bring their zeros along, takes "
        f"{seconds(here.seconds)}."
    )


def _loops(results: Results) -> list[dict[str, Any]]:
    return [
        each | {"each": digits((each["broadcasts"] + each["loads"]) / each["multiply_adds"], 2)}
        for each in results.instructions
    ]


def source(file: str, names: tuple[str, ...]) -> str:
    """Return functions and assignments of a file of the package, by name, as they stand; "" where there are none."""
    path = files("jitconv") / file
    if not path.is_file():
        return ""
    text = path.read_text(encoding="utf-8")
    lines, parts = text.splitlines(keepends=True), []
    tree = ast.parse(text).body
    methods = {
        each: f"{node.name}.{each.name}"
        for node in tree
        if isinstance(node, ast.ClassDef)
        for each in node.body
        if isinstance(each, ast.FunctionDef)
    }
    for node in [*tree, *methods]:
        name = (
            methods[node] if node in methods else node.name if isinstance(node, ast.FunctionDef | ast.ClassDef) else ""
        )
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            name = node.targets[0].id
        if name in names:
            first = min([node.lineno, *(each.lineno for each in getattr(node, "decorator_list", []))])
            parts.append(
                "".join(
                    getblock(lines[first - 1 :])
                    if isinstance(node, ast.FunctionDef)
                    else lines[first - 1 : node.end_lineno]
                )
            )
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
