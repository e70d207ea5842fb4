"""Look for a layer or a small network that differs from torch: `python -m tests.fuzz --minutes 15 --seed 1`.

Layers, arguments, dtypes, memory layouts, values, numbers of threads and networks are random. A finding is made as
small as it can be, and printed as a command that runs it again. The search is in a process of its own: one that ends
is a finding too. Exits with 1 where there is one.
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import torch

import jitconv
from jitconv import functional, variants
from jitconv.cases import COMPILES_EACH
from jitconv.verify import results
from tests.fuzz.draw import case_of, examples
from tests.fuzz.exact import Exact
from tests.plan.test_networks import Random

ROOT = Path(__file__).parents[2]
EXAMPLES = 200  # of a round; a round of variants that compile for each example has fewer
DRAWS = 30  # of a case, for what torch uses of the bound
LUCK = 2  # times what torch uses: what a sum in another order may
TOLERANCE = {"float32": 1e-5, "float64": 1e-13}  # of a network's largest output


def wrong(example: dict[str, Any]) -> list[str]:
    """Run an example; return what differs from torch."""
    torch.set_num_threads(example["threads"])
    if "plan" in example:
        return _wrong_plan(example)
    case = case_of(example)
    expected = Exact(case, example["dtype"], example["seed"])
    layer = partial(getattr(functional, case.layer), variant=example["variant"])
    found = [
        one
        for one in expected.compare(example["variant"], results(layer, case, expected.inputs, expected.grad))
        if not one.ok
    ]
    if not found:
        return []
    usual = _torchs(example)
    return [str(one) for one in found if not one.bound_used <= LUCK * usual[one.quantity]]


def _torchs(example: dict[str, Any]) -> dict[str, float]:
    """How much of the bound torch uses for such numbers: of very many random sums, some are unlucky."""
    used: dict[str, float] = {}
    for seed in range(DRAWS):
        expected = Exact(case_of(example), example["dtype"], seed)
        for one in expected.compare("torch", expected.reference):
            used[one.quantity] = max(one.bound_used, used.get(one.quantity, 0.0))
    return used


def _wrong_plan(example: dict[str, Any]) -> list[str]:
    torch.manual_seed(example["seed"])
    dtype, shape = getattr(torch, example["dtype"]), example["shape"]
    model, x = Random(example["plan"], shape[1]).eval(), torch.randn(shape, dtype=dtype)
    with torch.no_grad():
        wanted = model.double()(x.double())
    got = jitconv.plan(model.to(dtype), x, variant=example["variant"])(x)
    errors = [float((a.double() - b).abs().max() / b.abs().max()) for a, b in zip(got, wanted, strict=True)]
    return [f"an error of {error:.2g}" for error in errors if not error <= TOLERANCE[example["dtype"]]]


def command(example: dict[str, Any]) -> str:
    return f"python -m tests.fuzz --example {shlex.quote(json.dumps(example))}"


def search(seed: int, until: float, current: Path) -> None:
    """Run rounds of examples until then; the one that runs is written to `current`, findings to stdout."""
    names = tuple(name for name in variants.available("cpu") if name not in ("interpreted", "torch"))
    fast = tuple(name for name in names if name not in COMPILES_EACH)
    count, round_, file = 0, 0, os.open(current, os.O_WRONLY)

    def run(example: dict[str, Any]) -> list[str]:
        nonlocal count
        count += 1
        os.pwrite(file, json.dumps(example).encode().ljust(os.fstat(file).st_size), 0)  # over all of the one before
        try:
            return wrong(example)
        except Exception as error:
            return [f"{type(error).__name__}: {error}"]

    while time.monotonic() < until:
        few = round_ % 10 == 9
        size, chosen = (EXAMPLES // 20, COMPILES_EACH) if few else (EXAMPLES, fast)
        for problem, example in smallest(run, chosen, size, 1000 * seed + round_, until):
            print(f"finding: {problem}\n{command(example)}", flush=True)
        round_ += 1
        print(f"round {round_} of seed {seed}: {count} examples", file=sys.stderr, flush=True)
    print(f"{count} examples", flush=True)


def smallest(
    run: Callable[[dict[str, Any]], list[str]], names: tuple[str, ...], size: int, seed: int, until: float
) -> list[tuple[str, dict[str, Any]]]:
    """Run so many examples; return the smallest that is wrong, and how, if there is one."""
    failing: list[tuple[str, dict[str, Any]]] = []

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=size, deadline=None, database=None, suppress_health_check=list(hypothesis.HealthCheck)
    )
    @hypothesis.given(examples(names))
    def each(example: dict[str, Any]) -> None:
        if failing or time.monotonic() < until:
            problems = run(example)
            if problems:
                failing[:] = [("; ".join(problems), example)]
            assert not problems

    with suppress(AssertionError):
        each()
    return failing


def supervise(minutes: float, seed: int) -> int:
    """Search in a child process, and go on with another one where it ends too early; return the number of findings."""
    until, found = time.monotonic() + 60 * minutes, 0
    with tempfile.TemporaryDirectory() as folder:
        current = Path(folder) / "example.json"
        while (left := until - time.monotonic()) > 0:
            current.write_text("")
            options = ["--minutes", str(left / 60), "--seed", str(seed), "--current", str(current)]
            run = [sys.executable, "-m", "tests.fuzz", *options]
            passive = {**os.environ, "OMP_WAIT_POLICY": "passive"}  # more threads than cores would wait for each other
            child = subprocess.Popen(run, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=passive)
            assert child.stdout is not None
            for line in child.stdout:
                found += line.startswith("finding")
                print(line, end="", flush=True)
            if child.wait() == 0:
                break
            found, seed = found + 1, seed + 500
            example = json.loads(current.read_text())  # raises where the child has not begun
            print(f"finding: the process ended with {child.returncode}\n{command(example)}", flush=True)
    return found


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--example", type=json.loads, help="run this one alone")
    parser.add_argument("--current", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    warnings.filterwarnings("ignore")
    with np.errstate(all="ignore"):
        if options.example is not None:
            problems = wrong(options.example)
            print(*problems or ["right"], sep="\n")
            sys.exit(bool(problems))
        if options.current is not None:
            search(options.seed, time.monotonic() + 60 * options.minutes, options.current)
            return
    found = supervise(options.minutes, options.seed)
    print(f"{found} findings")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
