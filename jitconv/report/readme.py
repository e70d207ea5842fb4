"""The part of README that comes from results: the answer, a table by engine, and the losses, between two marks."""

from pathlib import Path

from jitconv.report import first
from jitconv.report.losses import losses
from jitconv.report.read import OURS, PLAN, Results
from jitconv.report.words import cores, named, seconds, times

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
    parts = [" ".join(first.plain(sentence) for sentence in first.answer(results)), _engines(results)]
    flagged = " ‡ is a time whose rounds are no measurement, as the report says." if "‡" in "".join(parts) else ""
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
                    cells.append(f"**{seconds(row.seconds)}**")
                else:
                    cells.append(f"{seconds(row.seconds)} ({times(row.seconds / mine.seconds)}{'‡' * bool(row.flags)})")
            if mine is not None:
                lines.append(f"| {title}, {cores(threads)} | " + " | ".join(cells) + " |")
    return "\n".join(lines) if len(lines) > 2 else ""


def _losses(results: Results) -> str:
    lost = losses(results)
    if not lost["large"] and not lost["small"]:
        return ""
    shown = [
        f"- {line['work']}, {line['quantity']}, {line['cores']}: {line['through']} {seconds(line['ours'])}, "
        f"{line['winner']} {seconds(line['theirs'])} ({line['ratio']}): {line['why']}"
        for line in lost["large"][:LOSSES]
    ]
    small = f"- {len(lost['small'])} calls of microseconds: {lost['small'][0]['why']}" if lost["small"] else ""
    more = max(0, len(lost["large"]) - LOSSES)
    head = f"**Where {OURS} and plans lose**, the most time first ({more} more are in the report):"
    return "\n".join([head, *shown, *([small] if small else [])])
