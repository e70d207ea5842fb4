"""The page: made of results alone, right when they are few, and self-contained in a browser."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from test_cli import MACHINE

from jitconv import report

COMMITTED = Path(__file__).parent.parent / "report" / "results"


def row(variant: str, seconds: float, **others: Any) -> dict[str, Any]:
    info = {
        "group": "layers", "work": "conv, 64", "layer": "conv2d", "quantity": "forward", "variant": variant,
        "threads": 1, "device": "cpu", "batch": 64, "flops": 1e9, "bytes": 1e6, "axis": "", "size": 0, "borrows": "",
        "bound_used": 0.5, **others,
    }  # fmt: skip
    return {"extra_info": info, "stats": {"data": [seconds, 1.01 * seconds, 0.99 * seconds]}}


def benchmarks(folder: Path, *rows: dict[str, Any], gaps: tuple[dict[str, str], ...] = ()) -> Path:
    file = folder / "benchmarks.json"
    file.write_text(json.dumps({"machine_info": MACHINE, "benchmarks": rows, "gaps": gaps}))
    return file


def build(tmp_path: Path, *files: Path) -> tuple[list[str], str]:
    page = tmp_path / "page.html"
    return report.build(files, page), page.read_text()


def test_findings_follow_the_data(tmp_path: Path) -> None:
    faster = benchmarks(tmp_path, row("jit-tiled", 1e-3), row("torch", 2e-3))
    findings, page = build(tmp_path, faster)
    assert findings == ["of 1 measurements of single layers jit-tiled wins 1."]
    assert "2.00×" in page
    assert "In none of the measurements given." in page
    slower = benchmarks(tmp_path, row("jit-tiled", 4e-3), row("torch", 2e-3))
    findings, page = build(tmp_path, slower)
    assert "loses 1, the worst, conv, 64 forward, at 0.50 of torch's speed" in findings[0]
    assert '<td class="lost">0.50×</td>' in page


def test_the_step_that_is_found_is_the_networks(tmp_path: Path) -> None:
    steps = [
        row(variant, seconds, work=work, group=group, quantity="step")
        for group, work, ours, torchs in (
            ("models", "alexnet", 1e-3, 9e-3),
            ("network", "training step, 64", 1e-3, 2e-3),
        )
        for variant, seconds in (("jit-tiled", ours), ("torch", torchs))
    ]
    findings, _ = build(tmp_path, benchmarks(tmp_path, *steps, row("jit-tiled", 1e-3), row("torch", 2e-3)))
    assert "takes jit-tiled 1/2.0 of torch's time" in findings[0]


def test_rates_are_set_against_the_measured_peak(tmp_path: Path) -> None:
    machine = {"group": "machine", "layer": "machine", "quantity": "peak", "batch": 0, "flops": 4e9}
    peak = row("machine", 1e-3, work="multiply-adds", **machine)
    _, page = build(tmp_path, benchmarks(tmp_path, row("jit", 1e-3), row("torch", 1e-3), peak))
    assert "1e+03 GFLOP/s, 25 %" in page


def test_goals_stand_beside_what_the_peak_allows(tmp_path: Path) -> None:
    peak = row("machine", 1e-3, group="machine", layer="machine", quantity="peak", flops=4e9)
    work = {"work": "fc1 2880→500, 64", "layer": "linear"}
    times = row("jit-tiled", 4e-4, **work), row("torch", 5e-4, **work)
    _, page = build(tmp_path, benchmarks(tmp_path, *times, peak))
    line = page.partition("<td>linear 2880→500 forward, 64 images</td>")[2].partition("</tr>")[0]
    cells = '<td class="words">torch</td><td>1.7 ×</td><td class="lost">1.25 ×</td><td>2.02 ×</td>'
    assert line == cells  # at 4e9 operations in the best round, 0.99 ms, 1e9 take 0.2475 ms
    times = row("jit-tiled", 2.6e-4, **work), row("torch", 4e-4, **work)
    _, page = build(tmp_path, benchmarks(tmp_path, *times, peak))
    line = page.partition("<td>linear 2880→500 forward, 64 images</td>")[2].partition("</tr>")[0]
    assert line.endswith('<td class="lost">1.54 ×</td><td class="lost">1.62 ×</td>')


def test_a_gpu_has_three_times(tmp_path: Path) -> None:
    gpu = {"group": "gpu", "device": "cuda", "end_to_end_seconds": [3e-3, 3e-3, 3e-3]}
    ours = row("cuda-tiled", 2e-4, kernel_seconds=[5e-5, 4e-5, 9e-5], **gpu)
    theirs = row("torch", 1e-4, kernel_seconds=[1e-4] * 3, **gpu)
    epochs = [
        row(name, time, group="gpu", device="cuda", work="epoch", quantity="epoch, captured", flops=0, bytes=0)
        for name, time in (("cuda-tiled", 0.5), ("torch", 1.5))
    ]
    _, page = build(tmp_path, benchmarks(tmp_path, ours, theirs, *epochs))
    section = page.partition('<section id="gpu">')[2].partition("</section>")[0]
    line = section.partition("cuda-tiled</td>")[2].partition("</tr>")[0]
    assert line.startswith("<td>50 µs</td><td>200 µs</td><td>3 ms</td><td>2.00×</td><td>2e+04</td><td>20</td>")
    assert "<td>—</td><td>500 ms</td><td>—</td><td>3.00×</td>" in section
    _, page = build(tmp_path, benchmarks(tmp_path, row("jit", 1e-3)))
    assert "Not measured here." in page


def test_what_is_missing_wrong_or_borrowed_is_named(tmp_path: Path) -> None:
    gap = {"row": "forward jax", "outcome": "skipped", "why": "jax is not installed"}
    _, page = build(tmp_path, benchmarks(tmp_path, row("mine", 1e-3, borrows="jit"), gaps=(gap,)))
    assert "forward jax: skipped, jax is not installed" in page
    assert "mine borrows the kernels of jit for conv2d" in page
    assert "training: missing, no such results were given" in page
    assert "Not verified in the results given." in page


def test_names_are_escaped(tmp_path: Path) -> None:
    _, page = build(tmp_path, benchmarks(tmp_path, row("<script>alert(1)</script>", 1e-3), row("torch", 1e-3)))
    assert "<script" not in page


def test_a_training_that_was_estimated_says_so(tmp_path: Path) -> None:
    config = {"variant": "interpreted", "data": "mnist-10k", "limit": 2}
    epoch = {"epoch": 1, "seconds": 5000.0, "loss": 2.3, "accuracy": None}
    content = {
        "kind": "jitconv-train", "config": config, "machine": MACHINE, "images": 8000, "warmup_seconds": 1.0,
        "estimated": True, "first_losses": [2.3], "epochs": [epoch],
    }  # fmt: skip
    file = tmp_path / "train.json"
    file.write_text(json.dumps(content))
    findings, page = build(tmp_path, file)
    assert findings == []
    assert "estimated from 2 images" in page


@pytest.mark.skipif(shutil.which("chromium") is None, reason="chromium is not installed")
def test_the_page_loads_nothing_and_shows_no_error(tmp_path: Path) -> None:
    pages = [tmp_path / "page.html"]
    report.build([benchmarks(tmp_path, row("jit-tiled", 1e-3), row("torch", 2e-3))], pages[0])
    if COMMITTED.is_dir():
        pages.append(tmp_path / "committed.html")
        report.build([COMMITTED], pages[1])
    for page in pages:
        log = tmp_path / "net.json"
        command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        command += [f"--user-data-dir={tmp_path / 'profile'}", "--enable-logging=stderr", f"--log-net-log={log}"]
        done = subprocess.run([*command, "--dump-dom", page.as_uri()], capture_output=True, text=True, timeout=120)
        assert "How far can plain loops go" in done.stdout
        assert "CONSOLE" not in done.stderr
        assert not [line for line in done.stdout.splitlines() if 'src="' in line or "@import" in line]
