"""`make study`: verify, measure, train, and write the page, in many short processes; says all the while how far it is.

What is not timed, proof and compiling, runs side by side; whatever is timed runs alone. Every pass over the rows is a
fresh process for each engine and number of cores, in a random order. Ctrl-C keeps what is done, writes the page from
it, and the same command goes on from there; a finished study begins anew.
"""

import argparse
import json
import math
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from jitconv import machine

ROOT = Path(__file__).parent.parent
PASSES = {"quick": 2, "full": 5}
MINUTES = {"quick": 10.8, "full": None}  # of the study, after which further passes end; with peers, none do
TRAININGS = {  # by name, the options of `jitconv train`
    "torch": "--variant torch",
    "jit-static": "--variant jit-static",
    "jit-tiled": "--variant jit-tiled",
    "plan": "--compile jitconv",
    "vector": "--variant vector --epochs 1",
    "jit-parallel": "--variant jit-parallel --epochs 1",
    "interpreted": "--variant interpreted --epochs 1 --limit 1",
}
_PYTEST = (
    *(sys.executable, "-m", "pytest", "benchmarks", "-v", "-p", "no:cacheprovider", "--no-header"),
    *("-p", "no:hypothesispytest", "--assert=plain"),  # two seconds of each process's start
)
NOT_COMPILED = ("interpreted", "vector", "torch", "again")  # words in the names of rows that compile nothing new
PASSIVE = {"OMP_WAIT_POLICY": "PASSIVE"}  # side by side, threads that spin take what the other process computes with
LINE_EVERY = 15  # seconds, where there is no terminal
INTERRUPTED = 130
FINISHED = re.compile(r" (PASSED|FAILED|ERROR|SKIPPED)")


@dataclass
class Step:
    """A process of the study. work: how many rows, or as much time as so many take. done: whether it need not run.

    timed: it has the machine to itself; the others run side by side.
    """

    name: str
    command: list[str]
    log: Path
    work: int
    done: Callable[[], bool]
    environment: dict[str, str] = field(default_factory=dict)
    timed: bool = True
    counts: bool = False  # rows are counted from its output
    may_fail: bool = False  # a wrong row ends pytest with 1, and is a gap of the report
    may_wait: bool = False  # a further pass: left out, or cut short, when the time for measuring is spent


@dataclass
class Study:
    """What is measured and where it is kept until all is done."""

    suite: str
    passes: int
    peers: bool
    folder: Path
    only: str = ""

    def steps(self) -> Iterator[Step]:
        """Yield everything to run, in the order of running."""
        python = sys.executable
        results = self.folder / "results"
        verify = results / "verify.json"
        command = [python, "-m", "jitconv", "verify", "--json", str(verify)]
        if self.suite == "quick" and not self.peers:
            command.append("--sample")
        yield Step("verifying", command, self.folder / "verify.txt", 100, verify.exists, PASSIVE, timed=False)
        yield from self._compiling()
        kept = results / "instructions.json"
        command = [python, "-m", "benchmarks.instructions", "--json", str(kept)]
        yield Step(
            "innermost loops", command, self.folder / "instructions.txt", 20, kept.exists, PASSIVE,
            timed=False, may_fail=True,
        )  # fmt: skip
        yield from self._measuring()
        for run, options in TRAININGS.items():
            out, kept = self.folder / f"train-{run}", results / f"train-{run}.json"
            command = [python, "-m", "jitconv", "train", "--out", str(out), *options.split()]
            if (out / "checkpoint.pt").exists():
                command.append("--resume")

            def finished(out: Path = out, kept: Path = kept) -> bool:
                if (self.folder / f"{kept.stem}.done").exists() and (out / "result.json").exists():
                    shutil.copy(out / "result.json", kept)
                return kept.exists()

            yield Step(f"training {run}", command, self.folder / f"{kept.stem}.txt", 60, finished)

    def _compiling(self) -> Iterator[Step]:
        """Compile what the first pass will run; jitconv's kernels are the same for any number of cores."""
        from benchmarks.rows import ENGINES, LANES

        ours, torchs = ENGINES[:2]
        compiled = f"not test_first_step and not test_machine and not ({' or '.join(NOT_COMPILED)})"
        for engine, threads in [(torchs, 1), (ours, 1), *((torchs, threads) for threads in LANES if threads > 1)]:
            log = self.folder / f"compiling-{engine}-{threads}.txt"
            command = [*_PYTEST, "--suite", self.suite, "--engine", engine, "--threads", str(threads)]
            which = [compiled] * (engine == ours) + [f"({self.only})"] * bool(self.only)
            command += ["--benchmark-disable", *(["-k", " and ".join(which)] if which else [])]
            environment = self._environment(threads) | PASSIVE | {"BENCHMARK_COMPILES": "1"}
            yield Step(
                f"compiling {engine}", command, log, 130, log.with_suffix(".done").exists, environment,
                timed=False, may_fail=True,
            )  # fmt: skip

    def _measuring(self) -> Iterator[Step]:
        from benchmarks.rows import ENGINES, LANES, table

        rows = table(self.suite == "full")
        engines = ENGINES if self.peers else ENGINES[:2]
        for number in range(self.passes):
            lots = [(engine, threads) for engine in engines for threads in LANES]
            for engine, threads in random.Random(number).sample(lots, len(lots)):
                names = {
                    row.name
                    for row in rows
                    if row.engine == engine and row.threads == threads and row.again_in(number, self.suite == "full")
                }
                earlier = sorted(self.folder.glob(f"pass{number}-{engine}-{threads}-*.json"))
                left = names - _names_in(earlier)
                if not left:
                    continue
                file = self.folder / f"pass{number}-{engine}-{threads}-{len(earlier)}.json"
                command = [*_PYTEST, "--suite", self.suite, "--engine", engine, "--threads", str(threads)]
                command += ["--pass-number", str(number), "--benchmark-json", str(file), "--benchmark-quiet"]
                command += [f"--done={each}" for each in earlier] + (["-k", self.only] if self.only else [])
                yield Step(
                    f"pass {number + 1} of {self.passes}: {engine}, {threads} core{'s' * (threads > 1)}",
                    command, file.with_suffix(".txt"), len(left), file.exists, self._environment(threads),
                    counts=True, may_fail=True, may_wait=number > 0,
                )  # fmt: skip

    def _environment(self, threads: int) -> dict[str, str]:
        """Inductor writes the number of threads into its code, so each lane has a cache of its own."""
        return {
            "BENCHMARK_CORES": str(machine.cores()),
            "TORCHINDUCTOR_CACHE_DIR": str((self.folder / f"inductor-{threads}").resolve()),
            "TORCHINDUCTOR_COMPILE_THREADS": "1",
        }

    def merge(self) -> None:
        """Write one file of all passes, in pytest-benchmark's format."""
        contents = [_json(file) for file in sorted(self.folder.glob("pass*.json"))]
        contents = [each for each in contents if each is not None]
        if not contents:
            return
        gaps = {(gap["row"], gap.get("threads")): gap for content in contents for gap in content["gaps"]}
        whole = contents[0] | {
            "machine_info": machine.describe(),
            "benchmarks": [each for content in contents for each in content["benchmarks"]],
            "gaps": list(gaps.values()),
        }
        (self.folder / "results").mkdir(parents=True, exist_ok=True)
        (self.folder / "results" / "benchmarks.json").write_text(json.dumps(whole, ensure_ascii=False, indent=0))


def _json(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # an interrupted process may leave half a file
        return None


def _names_in(files: list[Path]) -> set[str]:
    contents = [content for content in map(_json, files) if content]
    measured = {each["extra_info"]["name"] for content in contents for each in content["benchmarks"]}
    return measured | {gap["row"] for content in contents for gap in content["gaps"]}


class Display:
    """How far the study is: a bar on a terminal, else a line each 15 seconds."""

    def __init__(self, total: int) -> None:
        self.total, self.done, self.name = total, 0, ""
        self.started = self.last = time.monotonic()
        console = Console(stderr=True)
        self.bar = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
            console=console, disable=not console.is_terminal,
        )  # fmt: skip
        self.task = self.bar.add_task("", total=total)
        self.plain = not console.is_terminal

    def begin(self, name: str) -> None:
        self.name = name
        self.bar.update(self.task, description=name)
        self.line()

    def advance(self, rows: int) -> None:
        self.done += rows
        self.bar.update(self.task, completed=self.done)

    def tick(self) -> None:
        if time.monotonic() - self.last >= LINE_EVERY:
            self.line()

    def line(self) -> None:
        self.last = time.monotonic()
        if self.plain:
            spent = self.last - self.started
            left = f", about {spent * (self.total - self.done) / self.done / 60:.0f} min left" if self.done else ""
            print(
                f"{self.done} of {self.total} rows, {spent / 60:.1f} min{left}; {self.name}",
                file=sys.stderr,
                flush=True,
            )


class Running:
    """A step's process, its output to its log."""

    def __init__(self, step: Step) -> None:
        self.step, self.counted = step, 0
        step.log.parent.mkdir(parents=True, exist_ok=True)
        with step.log.open("w") as log:
            environment = {**os.environ, **step.environment}
            self.process = subprocess.Popen(
                step.command, stdout=log, stderr=subprocess.STDOUT, cwd=ROOT, env=environment
            )

    def finished(self) -> int:
        """How many of its rows have finished since this was asked last; all, when the process has ended."""
        before = self.counted
        if self.process.poll() is not None:
            self.counted = self.step.work
        elif self.step.counts:
            self.counted = min(self.step.work, len(FINISHED.findall(self.step.log.read_text(errors="replace"))))
        return self.counted - before

    def end(self) -> None:
        """Interrupt it, and wait until it has written what it has."""
        self.process.send_signal(signal.SIGINT)
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()


def run(steps: list[Step], display: Display, until: float = math.inf) -> None:
    """Run steps side by side, one on each core, and count the rows that they finish.

    until: when those that may wait are told to end, on the monotonic clock; they keep what they have, as all do at
    KeyboardInterrupt.
    """
    waiting, running = [*steps], list[Running]()
    try:
        while waiting or running:
            while waiting and len(running) < machine.cores():
                running.append(Running(waiting.pop(0)))
                display.begin(", ".join(each.step.name for each in running))
            time.sleep(0.2)
            for each in [*running]:
                if each.step.may_wait and time.monotonic() > until:
                    each.end()
                display.advance(each.finished())
                if each.process.returncode is not None:
                    running.remove(each)
                    _ended(each)
            display.tick()
    finally:
        for each in running:
            each.end()


def _ended(running: Running) -> None:
    step, code = running.step, running.process.returncode
    if code and not step.may_fail:
        tail = "\n".join(step.log.read_text(errors="replace").splitlines()[-20:])
        raise SystemExit(f"{step.name} ended with {code}:\n{tail}")
    step.log.with_suffix(".done").touch()


def main(arguments: list[str] | None = None) -> int:
    """Run the study; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.study", description=__doc__)
    parser.add_argument("--suite", choices=tuple(PASSES), default="quick")
    parser.add_argument("--passes", type=int, help="fresh processes for each engine and lane (quick: 2, full: 5)")
    parser.add_argument(
        "--minutes", type=float, help="of the study, after which passes but the first end (quick without peers: 10.8)"
    )
    parser.add_argument("--peers", action="store_true", help="measure ONNX Runtime, OpenVINO and JAX too")
    parser.add_argument("--results", type=Path, default=Path("runs/results"))
    parser.add_argument("--page", type=Path, default=Path("report/index.html"))
    parser.add_argument("--folder", type=Path, default=Path("runs/study"), help="where an unfinished study is kept")
    parser.add_argument("--only", default="", help="rows to measure, as pytest -k takes them")
    options = parser.parse_args(arguments)
    study = Study(
        options.suite, options.passes or PASSES[options.suite], options.peers, options.folder.resolve(), options.only
    )
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a process in the background is born deaf to it
    minutes = options.minutes or (None if options.peers else MINUTES[options.suite])
    _begin(study)
    display = Display(sum(step.work for step in study.steps() if not step.done()))
    try:
        with display.bar:
            until = math.inf if minutes is None else display.started + 60 * minutes
            run([step for step in study.steps() if not (step.timed or step.done())], display)
            for step in study.steps():
                if not step.done() and not (step.may_wait and time.monotonic() > until):
                    run([step], display, until)
                    step.done()
    except KeyboardInterrupt:
        _write(study, options.results, options.page)
        print("interrupted: the same command goes on from here", file=sys.stderr)
        return INTERRUPTED
    _write(study, options.results, options.page)
    shutil.rmtree(study.folder)
    return 0


def _begin(study: Study) -> None:
    """Go on with what the folder holds if it is of the same code and the same options, else begin anew."""
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    stamp = json.dumps([head.stdout.strip(), study.suite, study.passes, study.peers, study.only, machine.cpu_name()])
    file = study.folder / "stamp.json"
    if study.folder.exists() and (not file.exists() or file.read_text() != stamp):
        shutil.rmtree(study.folder)
    (study.folder / "results").mkdir(parents=True, exist_ok=True)
    file.write_text(stamp)


def _write(study: Study, results: Path, page: Path) -> None:
    """Copy what was found to the folder of results, and make the page of it."""
    study.merge()
    results.mkdir(parents=True, exist_ok=True)
    for file in (study.folder / "results").glob("*.json"):
        shutil.copy(file, results / file.name)
    if (results / "benchmarks.json").exists():
        command = [sys.executable, "-m", "jitconv", "report", str(results), "-o", str(page)]
        if page.resolve().parent == ROOT / "report" and results.resolve().is_relative_to(ROOT / "report"):
            command += ["--readme", str(ROOT / "README.md")]  # the committed results and page
        subprocess.run(command, cwd=ROOT, check=True)


if __name__ == "__main__":
    sys.exit(main())
