"""Faults: what is cut short, interrupted, killed or open to others ends in the right numbers or a clear error."""

import errno
import gc
import json
import os
import signal
import subprocess
import sys
import weakref
from contextlib import suppress
from pathlib import Path
from types import FunctionType
from typing import Any

import numpy as np
import pytest
import torch
from numba import literal_unroll
from torch import nn

import jitconv
from jitconv import machine
from jitconv.plan import program
from jitconv.train import Config, Run
from jitconv.variants import compiling, simd


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_a_plan_interrupted_while_it_is_bound_computes_right_later(
    error: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kernels are compiled there, so there Ctrl-C is most likely."""
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(100, 5)).eval()
    x, bound = torch.randn(2, 1, 12, 12), []
    plan = jitconv.plan(model, x)

    def interrupted(frame: Any, step: Any, stand_ins: Any) -> Any:
        bound.append(step)
        if len(bound) == 2:
            raise error
        return real(frame, step, stand_ins)

    real = program.Frame._recorded
    monkeypatch.setattr(program.Frame, "_recorded", interrupted)
    with pytest.raises(error):
        plan(x)
    with torch.no_grad():
        torch.testing.assert_close(plan(x), model(x))


def increment(n):  # type: ignore[no-untyped-def]
    return n + 1


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "user" / "cache"
    folder.mkdir(parents=True)
    monkeypatch.setattr("numba.core.config.CACHE_DIR", str(folder))
    return folder


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="folders have no modes here")
@pytest.mark.parametrize("place", [".", ".."])
def test_a_cache_that_others_can_write_to_or_replace_is_refused(cache: Path, place: str) -> None:
    """The code goes elsewhere, and `jitconv doctor` names the folder."""

    def folder() -> Path:
        return Path(compiling.njit(increment).stats.cache_path)

    opened = (cache / place).resolve()
    assert cache in folder().parents
    opened.chmod(0o777)
    with pytest.warns(compiling.UntrustedCache, match=f"others can write to {opened}"):
        kernel = compiling.njit(increment)
    assert kernel(1) == 2
    assert not list(cache.rglob("*.nb?"))
    assert any(f"others can write to {opened}: chmod o-w, or set NUMBA_CACHE_DIR" in it for it in machine.problems())
    opened.chmod(0o1777)  # as /tmp is: what we make in it stays ours
    assert cache in folder().parents


@pytest.mark.parametrize("ending", ["nbi", "nbc"])
def test_a_cached_file_cut_at_any_byte_is_compiled_anew(cache: Path, ending: str) -> None:
    assert compiling.njit(increment)(1) == 2
    (file,) = cache.rglob(f"*.{ending}")
    whole = file.read_bytes()
    for length in sorted({0, 1, 2, 10, len(whole) - 2, len(whole) - 1, *range(0, len(whole), len(whole) // 12)}):
        file.write_bytes(whole[:length])
        for misses in (1, 0):  # the second time the code is whole again
            kernel = compiling.njit(increment)
            assert kernel(1) == 2
            assert sum(kernel.stats.cache_misses.values()) == misses, f"cut at {length} of {len(whole)} bytes"
        (file,) = cache.rglob(f"*.{ending}")


def another(n):  # type: ignore[no-untyped-def]
    return n + 2


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(errno.ENOSPC, "no space left on device")])
@pytest.mark.parametrize("older", [False, True])
@pytest.mark.parametrize("files", [0, 1, 2, 3])
def test_code_whose_writing_is_cut_short_is_never_taken_for_other_code(
    error: BaseException, older: bool, files: int, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After so many files. What lies there may be of older kernels: an index written before its code names that."""
    if older:
        was = FunctionType(another.__code__.replace(co_firstlineno=increment.__code__.co_firstlineno), globals())
        was.__name__, was.__qualname__ = increment.__name__, increment.__qualname__
        with monkeypatch.context() as before:
            before.setattr(compiling, "_kernel_sources", lambda: b"older")
            assert compiling.njit(was)(1) == 3
    replace, replaced = os.replace, []

    def cut(part: str, whole: str) -> None:
        if len(replaced) == files:
            raise error
        replaced.append(whole)
        replace(part, whole)

    with monkeypatch.context() as full:
        full.setattr(os, "replace", cut)
        kernel = compiling.njit(increment)
        with suppress(KeyboardInterrupt):
            assert kernel(1) == 2
        assert kernel(1) == 2
    assert len(replaced) == files
    assert not list(cache.rglob("*.tmp.*"))
    kernel = compiling.njit(increment)
    assert kernel(1) == 2
    assert sum(kernel.stats.cache_hits.values()) == (files == 3), "three files are all"


INTERRUPTED = """
import os, signal, sys, threading, time
import torch
from torch import nn
import jitconv
from jitconv import functional as F

signal.signal(signal.SIGINT, signal.default_int_handler)  # where the shell ignores it, too
which = sys.argv[1]
images = torch.randn(64, 16, 64, 64)
layers = [nn.Conv2d(16, 32, 5), nn.ReLU(), nn.Conv2d(32, 32, 5), nn.ReLU(), nn.Conv2d(32, 32, 5)]
model = nn.Sequential(*layers).eval()
weight = model[0].weight.detach()
if which == "plan":
    call = jitconv.plan(model, images)
else:
    def call(x):
        return F.conv2d(x, weight, variant=which)

call(images)
with torch.no_grad():
    wanted = model(images) if which == "plan" else nn.functional.conv2d(images, weight)
start = time.monotonic()
call(images)
spent = time.monotonic() - start
sent = []


def interrupt():
    time.sleep(spent / 3)
    sent.append(state)
    os.kill(os.getpid(), signal.SIGINT)


for _ in range(3):
    thread, state = threading.Thread(target=interrupt), "running"
    try:
        thread.start()
        call(images)
        state = "returned"  # on a busy machine, before it was interrupted
        thread.join(60)
    except KeyboardInterrupt:
        pass
    thread.join()
    torch.testing.assert_close(call(images), wanted, rtol=1e-4, atol=1e-4)
assert "running" in sent, sent
print("right")
"""


@pytest.mark.parametrize("which", ["jit-tiled", "jit-static", "plan"])
def test_ctrl_c_in_a_running_kernel_comes_when_it_returns_and_the_next_call_is_right(which: str) -> None:
    done = subprocess.run([sys.executable, "-c", INTERRUPTED, which], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "right\n"), done.stderr


def train(folder: Path, epochs: int, resume: bool = False) -> Run:
    run = Run(Config("torch", epochs=epochs, limit=64, threads=1), folder, resume)
    run.run(lambda *_: None, lambda _: None)
    return run


def test_a_checkpoint_cut_at_any_byte_is_named(tmp_path: Path) -> None:
    train(tmp_path, epochs=1)
    file = tmp_path / "checkpoint.pt"
    whole = file.read_bytes()
    for length in sorted({0, 1, 2, 10, len(whole) - 2, len(whole) - 1, *range(0, len(whole), len(whole) // 12)}):
        file.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"checkpoint\.pt is not a readable checkpoint"):
            train(tmp_path, epochs=2, resume=True)
    torch.save({"somebody": "else's"}, file)
    with pytest.raises(ValueError, match=r"checkpoint\.pt is not a readable checkpoint"):
        train(tmp_path, epochs=2, resume=True)


KILLED = """
import os, signal, sys
from pathlib import Path
from jitconv import train

replace, file, cut = os.replace, sys.argv[2], int(sys.argv[3])

def killed(part, whole):
    done = Path(sys.argv[1], "checkpoint.pt").exists()
    if done and Path(whole).name == file:
        os.truncate(part, cut * os.path.getsize(part) // 4)
        if cut == 4:
            replace(part, whole)
        os.kill(os.getpid(), signal.SIGKILL)
    replace(part, whole)

train.os.replace = killed
run = train.Run(train.Config("torch", epochs=3, limit=64, threads=1), Path(sys.argv[1]))
run.run(lambda *_: None, lambda _: None)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no such signal here")
@pytest.mark.parametrize(("file", "quarters"), [("result.json", 4), ("epochs.csv", 4), ("checkpoint.pt", 2)])
def test_a_kill_between_or_within_the_files_of_a_checkpoint_loses_nothing(
    file: str, quarters: int, tmp_path: Path
) -> None:
    """The second epoch's: what it would have replaced still stands, and the run goes on from there as if whole."""
    whole = train(tmp_path / "whole", epochs=3)
    folder = tmp_path / "killed"
    done = subprocess.run([sys.executable, "-c", KILLED, str(folder), file, str(quarters)])
    assert done.returncode == -signal.SIGKILL
    resumed = train(folder, epochs=3, resume=True)
    assert [epoch.loss for epoch in resumed.epochs] == [epoch.loss for epoch in whole.epochs]
    assert all(map(torch.equal, resumed.model.parameters(), whole.model.parameters()))
    assert len(json.loads((folder / "result.json").read_text())["epochs"]) == 3
    assert len((folder / "epochs.csv").read_text().splitlines()) == 4
    assert not list(folder.glob("*.part"))


def test_a_file_is_on_the_disk_before_it_replaces_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a power cut leaves a name that has no content yet, where the one before had."""
    on_disk: set[int] = set()
    replace, fsync = os.replace, os.fsync

    def noted(descriptor: int) -> None:
        on_disk.add(os.fstat(descriptor).st_ino)
        fsync(descriptor)

    def checked(part: Path, whole: Path) -> None:
        assert part.stat().st_ino in on_disk, whole
        replace(part, whole)

    monkeypatch.setattr("jitconv.train.os.fsync", noted)
    monkeypatch.setattr("jitconv.train.os.replace", checked)
    train(tmp_path, epochs=1)


def test_a_short_soak_holds_no_more_at_its_end() -> None:
    """A long one is `python -m tests.soak --calls 100000`."""
    run = [sys.executable, "-m", "tests.soak", "--calls", "1000"]
    done = subprocess.run(run, capture_output=True, text=True, cwd=Path(__file__).parent.parent)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count(" calls ") == 10


def test_a_soak_finds_what_is_kept() -> None:
    """In a process of its own: one that has run other tests has memory to spare."""
    code = """if True:
        from tests import soak
        kept = []
        soak.Soak.call = lambda self, number: kept.append(b"1" * 2**20)
        soak.main(["--calls", "20", "--threads", "1"])"""
    root = Path(__file__).parent.parent
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root)
    assert done.returncode == 1, done.stderr
    assert "memory grew by 16" in done.stdout


def test_what_made_numba_compile_is_not_kept() -> None:
    """Each of literal_unroll's constants is first tried as any number; Numba keeps the error, and its frames too."""

    def filled(out, rows):  # type: ignore[no-untyped-def]
        simd.store(simd.zeros(out, rows, 1), out, 0, simd.lanes(out), None)

    inner = compiling.inner(filled)

    def fill(out, number):  # type: ignore[no-untyped-def]
        for rows in literal_unroll((1, 2)):
            if rows == number:
                inner(out, rows)

    kernel, out = compiling.njit(fill, cache=False), np.ones(64, np.float32)

    def call() -> weakref.ref[nn.Module]:
        model = nn.ReLU()
        kernel(out, 2)
        return weakref.ref(model)

    model = call()
    gc.collect()
    assert out.sum() == 64 - 2 * simd.lanes_of(np.float32)
    assert model() is None
