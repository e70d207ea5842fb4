"""The report: results JSON → rows (read.py, intervals.py) → first screen, tables, charts → one page (page.html.j2).

It never measures, imports no torch, and the page loads nothing. compare.py sets two runs beside each other.
"""

import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from jitconv.report import charts, first, ladder, readme, roofline, tables
from jitconv.report.read import OURS, Results, Row, read
from jitconv.report.words import NOT_MEASURED, named, seconds

OF_A_PASS = ("pass", "cores", "used_cores", "other_cores", "preempted")  # of a row's info; flags say what counts


def build(paths: Sequence[Path], out: Path, readme_file: Path | None = None) -> list[str]:
    """Write the page made of results (JSON files, or folders of them) to `out`, and hero.svg beside it.

    readme_file: whose part from results is written anew, see readme.py.

    Returns what came out, in sentences. Raises ValueError naming a file that is not a result of the benchmarks, of
    `verify` or of `train`.
    """
    results = read(paths)
    answer = first.answer(results)
    hero = first.hero(results)
    environment = _environment()
    page = environment.get_template("page.html.j2").render(
        answer=answer,
        hero=hero,
        ranking=first.ranking(results),
        doubt=first.doubt(results),
        ladder=ladder.ladder(results),
        small=ladder.small(results),
        charts=charts.charts(results),
        above=roofline.above(results),
        style=_text("style.css"),
        script=_text("page.js"),
        rows=_script([_shown(row) for row in (*results.rows, *results.again, *results.repeated)]),
        others=_script(_others(results)),
        ours=OURS,
        not_measured=NOT_MEASURED,
        **tables.sections(results),
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(page, encoding="utf-8")
    if hero:
        ticks_at = 48 + 30 * sum(not rung["missing"] for rung in hero["rungs"]) + 8
        height = ticks_at + 20 * len(hero["ticks"]) + 36
        drawn = environment.get_template("hero.svg.j2").render(
            hero=hero,
            height=height,
            ticks_at=ticks_at,
            flagged=any(each.get("flags") for each in (*hero["rungs"], *hero["ticks"])),
        )
        out.with_name("hero.svg").write_text(drawn, encoding="utf-8")
    if readme_file is not None:
        readme.write(readme_file, results)
    return [first.plain(sentence) for sentence in answer]


def extract(page: Path) -> dict[str, Any]:
    """Return the data inside a page: its rows with every round, and everything else it was made from.

    Raises ValueError where the file is no page of jitconv.
    """
    text = page.read_text(encoding="utf-8")
    found = dict(re.findall(r'<script type="application/json" id="(rows|others)">(.*?)</script>', text, re.DOTALL))
    if found.keys() != {"rows", "others"}:
        raise ValueError(f"page must be one that jitconv report wrote, got {page}")
    return {"kind": "jitconv-page", "rows": json.loads(found["rows"]), **json.loads(found["others"])}


def _environment() -> Any:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("jitconv.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        seconds=seconds,
        named=named,
        two=lambda value: f"{value:.2f}",
        x=lambda at: round(160 + 6.8 * at, 1),
        slug=lambda text: re.sub(r"[^\w-]+", "-", str(text)),
    )
    return environment


def _text(name: str) -> Markup:
    return Markup((Path(__file__).parent / name).read_text(encoding="utf-8"))


def _shown(row: Row) -> dict[str, Any]:
    ratio = row.ratio
    numbers = {"seconds": row.seconds, "low": row.time.low, "high": row.time.high}
    if ratio is not None:
        numbers |= {"ratio": ratio.middle, "ratio_low": ratio.low, "ratio_high": ratio.high}
    shown = {name: float(f"{value:.5g}") for name, value in numbers.items() if not math.isnan(value)}
    info = {name: value for name, value in row.info.items() if name not in OF_A_PASS}
    of_row = {"flags": row.flags, "passes": row.passes, "iterations": row.iterations, "file": row.file}
    return info | shown | of_row


def _others(results: Results) -> dict[str, Any]:
    return {
        "machines": results.machines,
        "commit_info": results.commit,
        "datetime": results.date,
        "suite": results.suite,
        "variants": results.order,
        "gaps": results.gaps,
        "digits": results.digits,
        "cases": results.cases,
        "own_bounds": results.own_bounds,
        "trainings": results.trainings,
        "instructions": results.instructions,
    }


def _script(value: Any) -> Markup:
    """JSON in which nothing can look like a tag."""
    return Markup(json.dumps(value, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c"))
