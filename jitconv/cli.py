"""The command line: `jitconv verify | train | report | compare | extract | doctor`.

Exit codes: 0 fine, 1 slower than before (compare), 2 wrong usage, 3 wrong results, 4 an environment unfit for
the study. Results go to stdout, progress to stderr.
Commands import what they need when they run, so that `--help` and `report` do without torch.
"""

import importlib.util
import json
import sys
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

SLOWER, WRONG_RESULTS, UNFIT, INTERRUPTED = 1, 3, 4, 130
DTYPES = ("float32", "float64")

progress = Console(stderr=True)


class _UnfitError(click.ClickException):
    exit_code = UNFIT


class _Commands(click.Group):
    """Turns the library's complaints into messages: about values, which name the argument and the rule, is usage."""

    def invoke(self, context: click.Context) -> Any:
        try:
            return super().invoke(context)
        except ValueError as error:
            raise click.UsageError(str(error)) from error
        except (ConnectionError, ImportError) as error:
            raise _UnfitError(str(error)) from error


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="jitconv")
def main() -> None:
    """Layers of a convolutional network as plain loops, compiled: proved, trained, reported.

    The benchmarks and the study (pytest benchmarks, make study) are in the repository, not in the installed package.
    """


@main.command()
@click.option("--variant", "names", multiple=True, help="A variant to verify; again for more. Default: all here.")
@click.option("--layer", "layers", multiple=True, help="A layer to verify, conv2d say; again for more. Default: all.")
@click.option("--images", default=2, show_default=True, type=click.IntRange(1, 2000), help="Digits fed to the network.")
@click.option("--sample", is_flag=True, help="Every sixth case of the table, in one precision, as `make study` does.")
@click.option("--all", "everything", is_flag=True, help="Every result, not only the worst of a layer.")
@click.option("--json", "json_file", type=click.Path(dir_okay=False, path_type=Path), help="Write the checks here.")
def verify(
    names: tuple[str, ...],
    layers: tuple[str, ...],
    images: int,
    sample: bool,
    everything: bool,
    json_file: Path | None,
) -> None:
    """Compare every layer, forward and backward, with torch: on real digits, then on the table of cases."""
    from jitconv.variants import EXACT_OPS

    network, cases, hard, few = _checks(names, layers, images, sample)
    output = Console(width=max(100, Console().width))
    for (dtype,), found in _grouped(network, "dtype").items():
        output.print(_digits_table(dtype, found if everything else _worst(found)))
    output.print(_cases_table(cases, few))
    output.print(
        "MSE, max error: against torch in the same dtype. Error: against torch in float64, torch's own beside it. "
        f"Bound used: the largest share of the allowed error; exact: bit for bit, as {', '.join(EXACT_OPS)} must be."
    )
    if json_file is not None:
        _write_checks(json_file, network, cases, hard, few)
    wrong = [one for one in (*network, *cases) if not one.ok]
    for one in wrong:
        output.print(f"wrong: {one.variant} {one.layer} {one.case} {one.quantity} {one.dtype}: {one.max_error:.3g}")
    output.print(
        f"{len(wrong)} of {len(network) + len(cases)} results are wrong."
        if wrong
        else f"Every result{' of this sample' * sample} is right."
    )
    sys.exit(WRONG_RESULTS if wrong else 0)


def _checks(
    names: tuple[str, ...], layers: tuple[str, ...], images: int, sampled: bool
) -> tuple[list[Any], list[Any], list[Any], set[str]]:
    """Check the variants on digits and on the table of cases.

    Returns both, those of the table that try a bound of a variant's own, and which variants saw a sample of the table.
    """
    from dataclasses import replace

    import numpy as np

    from jitconv import adversary, data, variants
    from jitconv.cases import CASES, COMPILES_EACH, Case, sample
    from jitconv.verify import Check, check, network_cases

    known = dict.fromkeys(case.layer for case in CASES)
    if not known.keys() >= set(layers):
        raise ValueError(f"layer must be one of {', '.join(known)}, got {', '.join(layers)}")
    test_images, labels = data.load()[1].tensors
    digits, table = (
        [case for case in cases if case.layer in (layers or known)]
        for cases in (network_cases(test_images[:images], labels[:images]), CASES)
    )
    chosen = [variants.get(name) for name in names or variants.available()]
    for variant in chosen:
        if lacking := variants.missing(variant.device):
            raise ValueError(f"variant {variant.name!r} cannot run here: {lacking}")
    # On arrays, plain Python does in seconds what takes it minutes on tensors; the loops are the same.
    on_arrays = variants.add(
        replace(variants.get("interpreted"), name="interpreted-numpy", device="cpu", tensors=False)
    )

    def checks(cases: list[Case], variant: variants.Variant, in_turn: bool = False) -> list[Check]:
        device = "cuda" if variant.device == "cuda" else "cpu"
        runs_as = on_arrays if variant.name == "interpreted" else variant
        of = {dtype: cases[number :: len(DTYPES)] if in_turn else cases for number, dtype in enumerate(DTYPES)}
        found = [
            one for dtype in DTYPES for case in of[dtype] for one in check_or_say(case, runs_as.name, dtype, device)
        ]
        return [replace(one, variant=variant.name) for one in found]

    def check_or_say(case: Case, variant: str, dtype: str, device: str) -> list[Check]:
        """The checks of a case; where a kernel raises, that is a wrong result, and the others are looked at."""
        try:
            return check(case, variant, dtype, device=device)
        except Exception as error:
            *_, (file, line, *_) = traceback.extract_tb(error.__traceback__)
            raised = f"raised {type(error).__name__} at {Path(file).name}:{line}: {error}"
            errors = dict.fromkeys(("mse", "max_error", "error", "torch_error", "bound_used"), float("inf"))
            return [Check(case.layer, case.name, variant, dtype, raised, **errors)]

    few = {v.name for v in chosen if sampled or (v.name in COMPILES_EACH and v.name not in names)}
    on_digits, on_table, hard = [], [], []
    with np.errstate(invalid="ignore", over="ignore"), warnings.catch_warnings():
        # Some cases are made of NaN and infinity, and one makes torch mention a copy.
        warnings.filterwarnings("ignore", "Using padding='same' with even kernel lengths")
        for variant in _counted(chosen, "verifying"):
            on_digits += checks(digits, variant)
            on_table += checks(sample(table) if variant.name in few else table, variant, in_turn=sampled)
            if variant.bounds and "conv2d" in (layers or known):
                hard += [one for dtype in DTYPES for one in adversary.check_bounds(variant.name, dtype)]
    return on_digits, on_table + hard, hard, few


def _digits_table(dtype: str, checks: list[Any]) -> Table:
    """Return the study's table: a section for each layer, a row for each variant's result."""
    table = Table("layer", "variant", "result", title=f"Each layer on digits, fed torch's output before it: {dtype}")
    for heading in ("MSE", "max error", "error", "torch's", "bound used"):
        table.add_column(heading, justify="right")
    for found in _grouped(checks, "case").values():
        for one in found:
            numbers = (f"{value:.1e}" for value in (one.mse, one.max_error, one.error, one.torch_error))
            table.add_row(one.case, one.variant, one.quantity, *numbers, _share(one))
        table.add_section()
    return table


def _cases_table(checks: list[Any], few: set[str]) -> Table:
    """Return a row for each layer and a column for each variant: the largest share of the bound in the cases."""
    table = Table("layer", title="The table of cases (shapes, strides, NaN, ties, layouts, …): bound used")
    table.add_column("results", justify="right")
    for (variant,) in _grouped(checks, "variant"):
        table.add_column(variant, justify="right")
    for (layer,), found in _grouped(checks, "layer").items():
        by_variant = _grouped(found, "variant").values()
        worst = [max(group, key=lambda one: one.bound_used) for group in by_variant]
        table.add_row(layer, str(max(map(len, by_variant))), *map(_share, worst))
    if few:
        table.caption = f"a sample of the cases: {', '.join(sorted(few))}; on all: jitconv verify --variant NAME"
    return table


def _write_checks(path: Path, network: list[Any], cases: list[Any], hard: list[Any], few: set[str]) -> None:
    from dataclasses import asdict

    from jitconv import machine

    content = {
        "kind": "jitconv-verify",
        "machine": machine.describe(),
        "digits": [asdict(one) | {"ok": one.ok} for one in network],
        "cases": [
            {"layer": layer, "variant": variant, "dtype": dtype, "results": len(found)}
            | {"wrong": sum(not one.ok for one in found), "bound_used": max(one.bound_used for one in found)}
            | {"sample": variant in few}
            for (layer, variant, dtype), found in _grouped(cases, "layer", "variant", "dtype").items()
        ],
        "own_bounds": [asdict(one) | {"ok": one.ok} for one in hard],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1))


@main.command()
@click.option("--variant", help="What computes the layers.  [default: the best one for the device]")
@click.option("--data", "name", default="mnist-10k", show_default=True, help="mnist-10k, mnist or fashion-mnist.")
@click.option("--data-dir", help="A folder of IDX files, or where torchvision keeps its downloads.")
@click.option("--epochs", default=20, show_default=True, type=click.IntRange(1))
@click.option("--batch-size", default=64, show_default=True, type=click.IntRange(1))
@click.option("--lr", default=0.01, show_default=True, help="Learning rate.")
@click.option("--momentum", default=0.9, show_default=True)
@click.option("--seed", default=0, show_default=True, help="Of the initial weights and the order of the images.")
@click.option("--device", default="cpu", show_default=True)
@click.option("--threads", type=click.IntRange(1), help="CPU cores.  [default: as many as torch takes]")
@click.option("--limit", type=click.IntRange(1), help="Train on so many images an epoch; its time is then estimated.")
@click.option("--graph", is_flag=True, help="Replay each step as one CUDA graph; for CUDA devices.")
@click.option("--compile", help="Train through torch.compile with this backend: jitconv, inductor.")
@click.option("--resume", is_flag=True, help="Go on after the last finished epoch of --out.")
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder.  [default: runs/DATA-VARIANT or DATA-BACKEND]",
)
def train(name: str, variant: str | None, device: str, resume: bool, out: Path | None, **options: Any) -> None:
    """Train SimpleConvNet; writes result.json, epochs.csv and a checkpoint after every epoch.

    Started by torchrun, its processes share every batch, and the first one writes.
    """
    from jitconv import distributed, variants
    from jitconv.train import Config, Epoch, Run

    chosen = variants.resolve(variant, device.partition(":")[0]).name
    config = Config(chosen, data=name, device=device, **options)
    folder = out or Path("runs") / f"{config.data}-{config.compile or config.variant}"
    run = Run(config, folder, resume)
    progress.quiet = distributed.rank() > 0

    def line(epoch: Epoch) -> str:
        accuracy = "" if epoch.accuracy is None else f", {epoch.accuracy:.2%} of test images right"
        estimated = " (estimated)" if run.estimated else ""
        return f"epoch {epoch.epoch}: {epoch.seconds:.2f} s{estimated}, loss {epoch.loss:.4f}{accuracy}"

    try:
        with _bar("epoch 1") as (bar, task):

            def on_step(done: int, total: int) -> None:
                bar.update(task, completed=done, total=total)

            def on_epoch(epoch: Epoch) -> None:
                bar.console.print(line(epoch), highlight=False)
                bar.update(task, description=f"epoch {epoch.epoch + 1}", completed=0)

            result = run.run(on_step, on_epoch)
    except KeyboardInterrupt:
        kept = f"after epoch {len(run.epochs)}; --resume goes on from there" if run.epochs else "before the first epoch"
        progress.print(f"interrupted {kept}")
        sys.exit(INTERRUPTED)
    if distributed.rank() > 0:
        return
    if run.epochs:
        click.echo(
            f"{config.variant} on {config.data}: {line(run.epochs[-1])}; compiling {result['warmup_seconds']:.1f} s"
        )
    click.echo(folder / "result.json")


@main.command()
@click.argument("results", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@click.option("-o", "--output", default="report/index.html", show_default=True, type=click.Path(path_type=Path))
@click.option("--readme", type=click.Path(exists=True, path_type=Path), help="Write its part from the results anew.")
def report(results: tuple[Path, ...], output: Path, readme: Path | None) -> None:
    """Make one HTML page of results: JSON files of pytest-benchmark, verify and train, or folders of them.

    Writes hero.svg, the picture of the ladder, beside it.
    """
    from jitconv import report as page

    findings = page.build(results, output, readme)
    click.echo(output)
    for finding in findings:
        click.echo(finding)


class _Percent(click.ParamType):
    """A share, written 5% or 0.05."""

    name = "per cent"

    def convert(self, value: Any, param: Any, ctx: Any) -> float:
        try:
            share = float(str(value).rstrip("%")) / (100 if str(value).endswith("%") else 1)
        except ValueError:
            share = -1.0
        if not 0 <= share < 1:
            self.fail(f"must be a share such as 5% or 0.05, got {value}", param, ctx)
        return share


@main.command()
@click.argument("old", type=click.Path(exists=True, path_type=Path))
@click.argument("new", type=click.Path(exists=True, path_type=Path))
@click.option(
    "--fail-above", "limit", type=_Percent(), help="Exit with 1 where a row is slower by more than this, 5% say."
)
@click.option("--force", is_flag=True, help="Give verdicts even where the machines differ.")
def compare(old: Path, new: Path, limit: float | None, force: bool) -> None:
    """Set two runs beside each other, row by row, as Markdown for a pull request.

    A row is slower or faster where the 95 % interval of its change leaves out 1. --fail-above counts those whose lower
    bound, widened for the number of rows, is above the limit.
    """
    from jitconv.report.compare import compare as compared

    found = compared([old], [new])
    click.echo(found.markdown(limit, force))
    withheld = bool(found.differences) and not force
    sys.exit(SLOWER if limit is not None and not withheld and found.regressions(limit) else 0)


@main.command()
@click.argument("page", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("-o", "--output", type=click.Path(dir_okay=False, path_type=Path), help="File.  [default: stdout]")
def extract(page: Path, output: Path | None) -> None:
    """Give back the data inside a page that `report` wrote, as JSON."""
    from jitconv import report

    text = json.dumps(report.extract(page), ensure_ascii=False, indent=1)
    if output is None:
        click.echo(text)
    else:
        output.write_text(text, encoding="utf-8")


@main.command()
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def doctor(as_json: bool) -> None:
    """Print what this machine has for the study, what it can do at most, and what to fix: a block for an issue."""
    from jitconv import __version__, machine, speed, variants
    from jitconv.variants import compiling, threads

    facts = {"jitconv": __version__} | machine.describe() | speed.measure()
    facts["kernels"] = speed.kernels()
    facts["threading_layer"] = threads.layer()
    facts["compiled_code"] = str(compiling.cache_folder() or "not kept")
    facts["variants"] = list(variants.available())
    facts["not_here"] = variants.missing("cuda") or "nothing"
    lacking = [name for name in ("pytest_benchmark", "altair") if importlib.util.find_spec(name) is None]
    facts["report"] = "needs pip install 'jitconv[study]'" if lacking else "can be written"
    found = machine.problems()
    if as_json:
        click.echo(json.dumps({"kind": "jitconv-doctor", "machine": facts, "fix": found}, ensure_ascii=False, indent=1))
    else:
        facts |= {f"version_of_{package}": version for package, version in facts.pop("versions").items()}
        click.echo("```")
        for name, value in facts.items():
            text = ", ".join(map(str, value)) if isinstance(value, list) else value
            click.echo(f"{name.replace('_', ' ') + ':':24} {text}")
        for problem in found:
            click.echo(f"fix: {problem}")
        click.echo("```")
        if not found:
            click.echo(f"fit for the study on {facts['torch_threads']} cores")
    sys.exit(UNFIT if found else 0)


def _worst(checks: list[Any]) -> list[Any]:
    groups = _grouped(checks, "case", "variant", "dtype").values()
    return [max(found, key=lambda one: (one.bound_used, one.max_error)) for found in groups]


def _grouped(checks: list[Any], *fields: str) -> dict[tuple[str, ...], list[Any]]:
    groups: dict[tuple[str, ...], list[Any]] = {}
    for one in checks:
        groups.setdefault(tuple(getattr(one, field) for field in fields), []).append(one)
    return groups


def _share(one: Any) -> str:
    from jitconv.variants import EXACT_OPS

    return ("exact" if one.layer in EXACT_OPS else f"{one.bound_used:.0%}") if one.ok else "WRONG"


@contextmanager
def _bar(description: str) -> Iterator[tuple[Progress, Any]]:
    """A progress bar on a terminal; elsewhere only what is printed through its console."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=progress, transient=True, disable=not progress.is_terminal) as bar:
        yield bar, bar.add_task(description, total=None)


def _counted(chosen: list[Any], description: str) -> Iterator[Any]:
    with _bar(description) as (bar, task):
        bar.update(task, total=len(chosen))
        for variant in chosen:
            if not progress.is_terminal:
                progress.print(f"{description} {variant.name}", highlight=False)
            yield variant
            bar.advance(task)
