"""Results JSON into tidy rows: one object a row of the benchmarks, whatever files and passes it came from."""

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from jitconv.report import intervals
from jitconv.report.intervals import Interval
from jitconv.report.words import DATA_SETS, FLAGGED, cores, lists, seconds

OURS, BASELINE, PLAN = "jit-tiled", "torch", "jitconv plan"
WINOGRAD = ("jit-winograd", "jit-winograd plan")  # allowed larger errors, so neither ours nor rivals
GPU_TIMES = ("kernel_seconds", "end_to_end_seconds")  # beside `seconds`, from a call until it is done
COMPILED_BY = {"jitconv": PLAN, "inductor": "torch.compile"}  # backends of torch.compile, as the rows call them
KEY = ("group", "work", "layer", "quantity", "variant", "threads", "device", "batch", "axis", "size")
QUIET, NOISY = 0.03, 0.10  # how far nine of ten A/A pairs may differ on a machine that is quiet, noisy
OWN_TORCH = "only its other rows are compared with it"
LATE, BUSY = 0.35, 0.1  # cores: taken by others beyond those left over; used beyond those given


@dataclass
class Row:
    """A row over all its passes; `info` is what the benchmark wrote of it (see benchmarks/rows.py), in `file`.

    passes: the rounds of each pass in seconds. time: the median with its interval. ratio: the baseline's time over
    this one's, on as many cores. flags: why the row is no measurement, in words; such a row has no rank. ratio_flags:
    those of either row of the ratio.
    """

    info: dict[str, Any]
    passes: list[list[float]]
    iterations: int
    time: Interval
    file: str
    ratio: Interval | None = None
    noise: float = 0.0
    flags: tuple[str, ...] = ()
    ratio_flags: tuple[str, ...] = ()

    def __getattr__(self, name: str) -> Any:
        try:
            return self.__dict__["info"][name]
        except KeyError:
            raise AttributeError(name) from None

    @property
    def seconds(self) -> float:
        return self.time.middle

    @property
    def shown(self) -> str:
        """The time in words, marked where the row is flagged."""
        return seconds(self.seconds) + marked(self)

    @property
    def samples(self) -> list[float]:
        return [each for rounds in self.passes for each in rounds]

    @property
    def tie(self) -> bool:
        """Whether the ratio cannot be told from 1: the interval holds it, or the machine's noise is larger."""
        return self.ratio is not None and level(self.ratio, self.noise)

    @property
    def work_key(self) -> tuple[Any, ...]:
        """What is compared: the same work on as many cores."""
        return tuple(self.info[name] for name in KEY if name != "variant")


def marked(*rows: Row | None) -> str:
    """Return the mark of a number that a flagged row has a part in, or nothing."""
    return FLAGGED * any(row is not None and bool(row.flags) for row in rows)


def level(ratio: Interval, noise: float) -> bool:
    """Whether a ratio cannot be told from 1."""
    return ratio.holds(1.0) if ratio.known and abs(math.log(ratio.middle)) > noise else True


@dataclass
class Results:
    """Everything the page is made of.

    rows: the benchmarks'. again: those measured once more. repeated: those that an earlier file has too.
    digits, cases, own_bounds: the checks of `verify`. trainings: train's files. machines: what files were measured on.
    order: the variants, slowest to fastest. By cores: spread, the variance of log times between passes; ratio_spread,
    that of log ratios to torch; noise, how far A/A pairs differ. gaps: rows without a time, and why.
    """

    rows: list[Row] = field(default_factory=list)
    again: list[Row] = field(default_factory=list)
    digits: list[dict[str, Any]] = field(default_factory=list)
    cases: list[dict[str, Any]] = field(default_factory=list)
    own_bounds: list[dict[str, Any]] = field(default_factory=list)
    trainings: list[dict[str, Any]] = field(default_factory=list)
    machines: list[dict[str, Any]] = field(default_factory=list)
    gaps: list[dict[str, Any]] = field(default_factory=list)
    instructions: list[dict[str, Any]] = field(default_factory=list)
    order: list[str] = field(default_factory=list)
    commit: dict[str, Any] = field(default_factory=dict)
    date: str = ""
    suite: str = ""
    repeated: list[Row] = field(default_factory=list)
    spread: dict[int, float] = field(default_factory=dict)
    ratio_spread: dict[int, float] = field(default_factory=dict)
    noise: dict[int, float] = field(default_factory=dict)

    def pick(self, **where: Any) -> list[Row]:
        """Return the rows that have these values."""
        return [row for row in self.rows if all(getattr(row, name) == value for name, value in where.items())]

    def one(self, **where: Any) -> Row | None:
        """Return the first such row, if there is one."""
        return next(iter(self.pick(**where)), None)

    @property
    def lanes(self) -> list[int]:
        return sorted({row.threads for row in self.rows if row.device == "cpu"})

    @property
    def passes(self) -> int:
        return max((len(row.passes) for row in self.rows), default=0)

    def sorted_variants(self, names: Iterable[str]) -> list[str]:
        """Return these variants in the registry's order, then the others by name."""
        known = [name for name in self.order if name in set(names)]
        return known + sorted(set(names) - set(known))

    def peak(self) -> float:
        """Return one core's multiply-add peak in FLOP/s, or nan.

        It is a limit, so the best round of all counts: what else the machine did must not lower it.
        """
        rates = [row.flops / row.threads / min(row.samples) for row in self.pick(quantity="peak", device="cpu")]
        return max(rates, default=math.nan)

    def ratio(self, theirs: Row, ours: Row) -> Interval:
        """Return their time over ours."""
        return intervals.interval(ours.passes, theirs.passes, self.ratio_spread.get(ours.threads, 0.0))

    def verdict(self) -> tuple[str, str]:
        """Return "quiet", "noisy", "unusable" or "unknown", and how far A/A pairs differ, in words."""
        if not self.noise:
            return "unknown", "no row was measured twice"
        worst = max(self.noise.values())
        word = "quiet" if worst <= QUIET else "noisy" if worst <= NOISY else "unusable"
        lanes = lists([f"{100 * noise:.1f} % on {cores(threads)}" for threads, noise in sorted(self.noise.items())])
        return word, f"nine of ten rows measured twice differ by less than {lanes}"


def read(paths: Sequence[Path]) -> Results:
    """Read files, and every .json file in folders; ValueError for one that is not a result.

    A row that several files hold in the same pass is the first file's; the ratios of a later file's other rows are to
    the baseline in that file, measured beside them.
    """
    found = Results()
    paths = [file for path in paths for file in (sorted(path.rglob("*.json")) if path.is_dir() else [path])]
    parts: dict[tuple[Any, ...], list[dict[str, Any]]] = defaultdict(list)
    first: dict[tuple[Any, ...], str] = {}
    repeated: dict[str, dict[tuple[Any, ...], list[dict[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    for name, path in _names(paths).items():
        content = _content(path)
        kind = content.get("kind")
        if kind == "jitconv-train":
            content = {"machine": content["machine"], "trainings": [content]}
        machines = content.get("machines") or [content.get("machine") or content["machine_info"]]
        found.machines += [{"file": name} | machine for machine in machines]
        for part in ("digits", "cases", "own_bounds", "trainings", "instructions", "gaps"):
            getattr(found, part).extend(content.get(part, []))
        found.instructions += content.get("loops", [])
        for each in _of_page(content) if kind == "jitconv-page" else content.get("benchmarks", []):
            info, file = each["extra_info"], each.get("file", name)
            key = (*(info[name] for name in KEY), info.get("again", False))
            into = parts if first.setdefault((*key, info.get("pass", 0)), file) == file else repeated[file]
            into[key].append({"file": file} | each)
        found.order += [variant for variant in content.get("variants", []) if variant not in found.order]
        found.commit = found.commit or content.get("commit_info", {})
        found.date = found.date or content.get("datetime", "")[:10]
        found.suite = found.suite or content.get("suite", "")
    found.repeated = [_row(each) for rows in repeated.values() for each in rows.values()]
    for row in found.repeated:
        gap = {"row": row.name, "outcome": "left out", "why": f"of {row.file}, which an earlier file has: {OWN_TORCH}"}
        found.gaps += [gap] * (gap not in found.gaps)
    _fill(found, [_row(each) for each in parts.values()])
    known = [*DATA_SETS]
    found.trainings.sort(key=lambda run: run["epochs"][-1]["seconds"])
    found.trainings.sort(key=lambda run: known.index(data) if (data := run["config"]["data"]) in known else len(known))
    return found


def _names(paths: Sequence[Path]) -> dict[str, Path]:
    """Files by their names, numbered where two have the same one."""
    found: dict[str, Path] = {}
    for path in paths:
        again = sum(each.name == path.name for each in found.values())
        found[f"{path.name} ({again + 1})" if again else path.name] = path
    return found


def _of_page(content: dict[str, Any]) -> Iterable[dict[str, Any]]:
    """The rows of a page as the benchmarks wrote them, a pass at a time."""
    for row in content["rows"]:
        for number, data in enumerate(row["passes"]):
            stats = {"data": data, "iterations": row["iterations"]}
            yield {"extra_info": row | {"pass": number}, "stats": stats, "file": row["file"]}


def _content(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{file} is not a JSON file: {error}") from None
    kinds = ("jitconv-train", "jitconv-verify", "jitconv-instructions", "jitconv-page")
    known = isinstance(content, dict) and (
        content.get("kind") in kinds or {"benchmarks", "machine_info"} <= content.keys()
    )
    if not known:
        raise ValueError(f"{file} is neither a file of pytest-benchmark nor of jitconv verify or train")
    return content


def _row(parts: list[dict[str, Any]]) -> Row:
    parts = sorted(parts, key=lambda each: each["extra_info"].get("pass", 0))
    infos = [each["extra_info"] for each in parts]
    info = {"name": "", "command": "", "borrows": "", "bound_used": None} | infos[0]
    info["bound_used"] = max((each.get("bound_used") or 0.0 for each in infos), default=0.0)
    info |= {name: float(np.median(info[name])) for name in GPU_TIMES if name in info}
    passes = [each["stats"]["data"] for each in parts]
    time = Interval(intervals.middle(passes))
    row = Row(info, passes, parts[0]["stats"].get("iterations", 1), time, parts[0]["file"])
    row.flags = tuple(infos[0]["flags"]) if "flags" in infos[0] else _flags(row, infos)
    return row


def _flags(row: Row, infos: list[dict[str, Any]]) -> tuple[str, ...]:
    spare = max(each.get("other_cores", 0) - (each.get("cores", 0) - row.threads) for each in infos) if infos else 0
    spare = spare if all("cores" in each for each in infos) else 0
    checks = {
        "its times fall into two groups": any(intervals.two_modes(rounds) for rounds in row.passes),
        "its passes differ by half and more": intervals.far_apart(row.passes),
        "interrupted by another program": any(intervals.time_slices(rounds, row.iterations) for rounds in row.passes),
        "other programs took its cores": spare > LATE,
        "ran on more cores than it was given": any(each.get("used_cores", 0) > row.threads + BUSY for each in infos)
        and row.device == "cpu",
    }
    return tuple(name for name, is_so in checks.items() if is_so)


def _fill(found: Results, rows: list[Row]) -> None:
    """Set intervals and ratios, which need all rows: the spread between passes, and the noise of A/A pairs."""
    found.rows = [row for row in rows if not row.info.get("again")]
    found.again = [row for row in rows if row.info.get("again")]
    baseline = {row.work_key: row for row in found.rows if row.variant == BASELINE}
    for threads in sorted({row.threads for row in rows}):
        here = [row for row in rows if row.threads == threads]
        found.spread[threads] = intervals.between_passes([row.passes for row in here])
        pairs = [(row.passes, baseline[row.work_key].passes) for row in here if row.work_key in baseline]
        pairs = [(ours, theirs) for ours, theirs in pairs if ours is not theirs]
        found.ratio_spread[threads] = intervals.between_passes(*zip(*pairs, strict=True)) if pairs else 0.0
    originals = {(row.work_key, row.variant): row for row in found.rows}
    differences: dict[int, list[float]] = defaultdict(list)
    for row in found.again:
        original = originals.get((row.work_key, row.variant))
        if original is not None:
            differences[row.threads].append(abs(math.log(row.seconds / original.seconds)))
    found.noise = {threads: float(np.quantile(each, 0.9)) for threads, each in sorted(differences.items())}
    own = {
        (row.file, row.work_key): row for row in found.repeated if row.variant == BASELINE and not row.info.get("again")
    }
    for row in found.rows:
        row.time = intervals.interval(row.passes, spread=found.spread[row.threads])
        row.noise = found.noise.get(row.threads, 0.0)
        theirs = own.get((row.file, row.work_key), baseline.get(row.work_key))
        if theirs is not None and theirs is not row:
            row.ratio = found.ratio(theirs, row)
            row.ratio_flags = tuple(dict.fromkeys((*row.flags, *theirs.flags)))


def trained_through(run: dict[str, Any]) -> str:
    """Return what a training run went through: its variant, or the compiler of its network."""
    config = run["config"]
    compiled_by = config.get("compile")
    return COMPILED_BY.get(compiled_by, compiled_by) if compiled_by else config["variant"]
