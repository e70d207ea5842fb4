"""The part of README that comes from results: the answer, a table by engine, and the losses, between two marks."""

from pathlib import Path

from jitconv.report import first
from jitconv.report.losses import losses
from jitconv.report.read import OURS, PLAN, Results, marked
from jitconv.report.words import FLAG_SAYS, FLAGGED, cores, named, times

BEGIN, END = "<!-- from the results -->", "<!-- end -->"
LOSSES = 3


def write(readme: Path, results: Results) -> None:
    """Put what the results say between the marks; ValueError where README has none."""
    text = readme.read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"readme must have {BEGIN} and {END}, got {readme}")
    readme.write_text(f"{before}{BEGIN}\n{block(results)}\n{END}{after}", encoding="utf-8")


def block(results: Results) -> str:
    """Return it as Markdown."""
    doubt = first.doubt(results)
    said, table = " ".join(first.plain(part) for part in first.answer(results)), _engines(results)
    parts = [said, table]
    flagged = f" {FLAG_SAYS}" if FLAGGED in table and FLAG_SAYS not in said else ""
    parts.append(
        f"Medians of {results.passes} pass{'es' if results.passes != 1 else ''} on {doubt['machine']}, which was "
        f"{doubt['verdict']} ({doubt['why']}); float32; in brackets, an engine's time over our best on as many "
        f"cores.{flagged}"
    )
    parts.append(_losses(results))
    return "\n\n".join(part for part in parts if part)


def _engines(results: Results) -> str:
    names = [name for name in (PLAN, OURS, *first.ENGINES) if results.pick(group="network", variant=name)]
    lines = ["| work | " + " | ".join(map(named, names)) + " |", "|---|" + "---|" * len(names)]
    for threads in results.lanes:
        for work, title in (*first.WORKS, first.STEP):
            mine, cells = first.ours(results, work, threads), []
            for name in names:
                row = results.one(group="network", work=work, variant=name, threads=threads)
                if row is None or mine is None:
                    cells.append("–")
                elif row is mine:
                    cells.append(f"**{row.shown}**")
                else:
                    cells.append(f"{row.shown} ({times(row.seconds / mine.seconds)}{marked(row, mine)})")
            if mine is not None:
                lines.append(f"| {title}, {cores(threads)} | " + " | ".join(cells) + " |")
    return "\n".join(lines) if len(lines) > 2 else ""


def _losses(results: Results) -> str:
    lost = losses(results)
    if not lost["large"] and not lost["small"]:
        return ""
    shown = [
        f"- {line['what']}, {line['cores']}: {line['through']} {line['ours_shown']}, "
        f"{line['winner']} {line['theirs']} ({line['ratio']}): {line['why']}"
        for line in lost["large"][:LOSSES]
    ]
    small = f"- {len(lost['small'])} calls of microseconds: {lost['small'][0]['why']}" if lost["small"] else ""
    more = max(0, len(lost["large"]) - LOSSES)
    flagged = f" and {len(lost['flagged'])} of flagged times" if lost["flagged"] else ""
    head = f"**Where {OURS} and plans lose**, the most time first ({more} more{flagged} are in the report):"
    return "\n".join([head, *shown, *([small] if small else [])])
