"""The report: results JSON → tidy tables (read.py) → findings, charts and sections → one HTML page (page.html.j2).

It never measures, imports no torch, and the page loads nothing. A section is one block of the template and one
function of sections.py that makes what the block shows.
"""

from collections.abc import Sequence
from pathlib import Path

from jitconv.report import charts, findings, sections
from jitconv.report.read import read


def build(paths: Sequence[Path], out: Path) -> list[str]:
    """Write the page made of results (JSON files, or folders of them) to `out` and return its findings.

    Raises ValueError naming a file that is not a result of the benchmarks, of `verify` or of `train`.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    results = read(paths)
    found = findings.findings(results)
    environment = Environment(
        loader=PackageLoader("jitconv.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(seconds=sections.seconds, times=sections.times)
    page = environment.get_template("page.html.j2").render(
        findings=found,
        charts=charts.charts(results),
        style=environment.loader.get_source(environment, "style.css")[0],  # type: ignore[union-attr]
        **sections.sections(results),
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(page, encoding="utf-8")
    return found
