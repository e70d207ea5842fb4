"""The page: made of results alone, right when they are few, whole without script, and usable by all in a browser."""

import html
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from test_cli import MACHINE

from jitconv import report
from jitconv.report import first, ladder, readme, words
from jitconv.report.read import PLAN, read

ROOT = Path(__file__).parent.parent
COMMITTED = ROOT / "report" / "results"
CHROMIUM = [
    "chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-quic",
    "--no-first-run", "--disable-component-update", "--disable-sync",
]  # fmt: skip


def row(variant: str, seconds: float, noise: float = 0.01, **others: Any) -> dict[str, Any]:
    info = {
        "group": "layers", "work": "conv, 64", "layer": "conv2d", "quantity": "forward", "variant": variant,
        "threads": 1, "device": "cpu", "batch": 64, "flops": 1e9, "bytes": 1e6, "axis": "", "size": 0, "borrows": "",
        "bound_used": 0.5, "pass": 0, "name": f"conv, 64, forward, {variant}", "command": f"pytest {variant}", **others,
    }  # fmt: skip
    data = [seconds * (1 + noise * step) for step in (-1, 0, 1, -0.5, 0.5)]
    return {"extra_info": info, "stats": {"data": data, "iterations": 1}}


def benchmarks(folder: Path, *rows: dict[str, Any], gaps: tuple[dict[str, str], ...] = ()) -> Path:
    file = folder / "benchmarks.json"
    file.write_text(json.dumps({"machine_info": MACHINE, "benchmarks": rows, "gaps": gaps}))
    return file


def network(**seconds: float) -> list[dict[str, Any]]:
    """One image forward, on one core, by variants."""
    where = {"group": "network", "work": "forward, 1", "layer": "network", "batch": 1}
    names = {name.replace("_", "-"): time for name, time in seconds.items()}
    return [row(name, time, name=f"forward, 1, forward, {name}", **where) for name, time in names.items()]


def build(tmp_path: Path, *files: Path) -> tuple[list[str], str]:
    page = tmp_path / "page.html"
    return report.build(files, page), page.read_text()


def section(page: str, name: str) -> str:
    return page.partition(f'<section id="{name}">')[2].partition("</section>")[0]


def test_the_answer_follows_the_data(tmp_path: Path) -> None:
    answer, page = build(tmp_path, benchmarks(tmp_path, row("jit-tiled", 1e-3), row("torch", 2e-3)))
    assert answer[0].startswith("Of 1 timings of single layers jit-tiled wins 1 against torch and loses 0")
    assert "In none of the measurements given." in section(page, "losses")
    answer, page = build(tmp_path, benchmarks(tmp_path, row("jit-tiled", 4e-3), row("torch", 2e-3)))
    assert "wins 0 against torch and loses 1" in answer[0]
    assert "<td>0.50×" in section(page, "losses")
    assert "2.00 ms" in section(page, "losses")


def test_what_cannot_be_told_is_neither_won_nor_lost(tmp_path: Path) -> None:
    close = row("jit-tiled", 1.01e-3, noise=0.05), row("torch", 1e-3, noise=0.05)
    answer, page = build(tmp_path, benchmarks(tmp_path, *close))
    assert "wins 0 against torch and loses 0, 0 of them calls below 0.1 ms; 1 are too close to tell" in answer[0]
    assert 'class="tie"' in page


def test_the_headline_is_against_the_best_engine(tmp_path: Path) -> None:
    times = {"interpreted": 9.0, "jit": 7e-4, "jit_tiled": 1e-4, "torch": 4e-4, "onnxruntime": 2e-4}
    answer, page = build(tmp_path, benchmarks(tmp_path, *network(**times)))
    assert "takes 9.00 s in plain loops" in answer[0]
    assert "700 µs in the same loops compiled; torch takes 400 µs." in answer[0]
    assert "the fastest other engine is ONNX Runtime for 1 image at 2.0× our time (" in answer[1]
    assert "Not in this run: torch.compile, OpenVINO, JAX" in answer[1]
    ranks = page.partition('class="rank')[2]
    assert ranks.index("jit-tiled") < ranks.index("ONNX Runtime") < ranks.index("<b>torch</b>")


def test_the_plan_is_ours_where_it_was_measured(tmp_path: Path) -> None:
    times = {"interpreted": 9.0, "jit": 7e-4, "jit_tiled": 3e-4, "torch": 4e-4}
    rows = [*network(**times), row("jitconv plan", 1e-4, group="network", work="forward, 1", layer="network", batch=1)]
    answer, _ = build(tmp_path, benchmarks(tmp_path, *rows))
    assert "Planned as one call it takes 100 µs." in answer[0]
    assert "4.0× our time (" in answer[1]
    _, page = build(tmp_path, benchmarks(tmp_path, *network(**times)))
    assert words.NOT_MEASURED in page.partition("jitconv plan</span>")[2][:200]


def test_flagged_rows_have_no_rank_and_are_still_the_fastest_engine(tmp_path: Path) -> None:
    rows = network(jit_tiled=1e-4, torch=4e-4, onnxruntime=2e-5)
    rows[2]["stats"]["data"] = [2e-5, 2e-5, 2e-5, 9e-5, 9e-5]
    answer, page = build(tmp_path, benchmarks(tmp_path, *rows))
    assert "the fastest other engine is ONNX Runtime for 1 image at" in answer[0]
    assert "‡ our time" in answer[0]
    ranks = page.partition('class="rank')[2]
    assert ranks.index("<b>torch</b>") < ranks.index("ONNX Runtime")
    assert 'title="its times fall into two groups"' in ranks


def test_a_factor_of_a_flagged_time_is_marked_and_no_win(tmp_path: Path) -> None:
    rows = network(interpreted=9.0, jit=7e-4, jit_tiled=1e-4, torch=4e-4)
    rows += [row("jit-tiled", 1e-3), row("torch", 2e-3)]
    rows[2]["stats"]["data"] = [1e-4, 1e-4, 1e-4, 9e-4, 9e-4]
    rows[5]["stats"]["data"] = [2e-4, 2e-4, 2e-4, 9e-4, 9e-4]
    answer, page = build(tmp_path, benchmarks(tmp_path, *rows))
    assert "it takes 100 µs‡." in answer[0]
    assert words.FLAG_SAYS in answer[0], "where the mark first stands"
    assert "4.0×‡ our time" in answer[1]
    assert "wins 0 against torch and loses 0, 0 of them" in answer[2]
    assert "1 are flagged ‡ and count for neither" in answer[2]
    assert "7.0×‡" in page.partition('class="hero"')[2].partition("</ol>")[0]
    assert "0.20×‡" in section(page, "layers")
    block = readme.block(read([tmp_path / "benchmarks.json"]))
    assert "| **100 µs‡** | 400 µs (4.0×‡) |" in block
    assert block.count(words.FLAG_SAYS) == 1


def test_losses_of_flagged_times_stand_apart(tmp_path: Path) -> None:
    rows = [row("jit-tiled", 4e-3), row("torch", 2e-3), row("jit-tiled", 5e-3, work="pool, 64")]
    rows.append(row("torch", 1e-3, work="pool, 64"))
    rows[3]["stats"]["data"] = [1e-3, 1e-3, 1e-3, 3e-3, 3e-3]
    lost = section(build(tmp_path, benchmarks(tmp_path, *rows))[1], "losses")
    assert len(re.findall("<tr><th scope=.row. class=.work.>", lost)) == 1
    assert "of flagged times ‡, 1 may be losses or not" in lost
    assert "pool, 64, forward, one core: jit-tiled 5.00 ms, torch 1.00 ms‡ (its times fall into two groups)" in lost


def test_passes_far_apart_have_no_rank_and_no_cause(tmp_path: Path) -> None:
    passes = [row(name, time, **{"pass": n}) for name in ("jit-tiled", "torch") for n, time in enumerate((4e-3, 2e-3))]
    for each in passes[2:]:
        each["stats"]["data"] = [1e-3] * 5
    file = benchmarks(tmp_path, *passes)
    (mine,) = read([file]).pick(variant="jit-tiled")
    assert mine.flags == ("its passes differ by half and more",)
    assert "In none of the measurements given." in section(build(tmp_path, file)[1], "losses").partition("<details")[0]


@pytest.mark.parametrize(
    ("ours", "theirs", "cause"),
    [(8e-3, 2e-3, "more cores help it less"), (4e-3, 2.1e-3, "oneDNN&#39;s kernel fits this shape better")],
)
def test_cores_are_the_cause_only_where_one_core_loses_less(
    tmp_path: Path, ours: float, theirs: float, cause: str
) -> None:
    one = [row("jit-tiled", 8e-3), row("torch", 4e-3)]
    two = [row("jit-tiled", ours, threads=2), row("torch", theirs, threads=2)]
    lost = section(build(tmp_path, benchmarks(tmp_path, *one, *two))[1], "losses")
    lines = [line for line in lost.split("<tr>") if "two cores" in line]
    assert len(lines) == 1
    assert cause in lines[0]


def test_a_plan_that_is_slower_than_its_layers_is_shown(tmp_path: Path) -> None:
    where = {"group": "models", "work": "alexnet 64×64, 4", "layer": "network", "quantity": "step"}
    names = {"jit-tiled": 4e-3, PLAN: 8e-3, "torch": 9e-3}
    _, page = build(tmp_path, benchmarks(tmp_path, *(row(name, time, **where) for name, time in names.items())))
    lines = section(page, "losses").partition("Where a plan is slower")[2]
    assert "alexnet 64×64, 4, step" in lines
    assert "<td>0.50×" in lines


def test_small_steps_are_shown_with_their_source_and_as_many_images(tmp_path: Path) -> None:
    where = {"group": "ladder", "work": "digits", "layer": "conv2d"}
    rows = [
        row("1_interpreted", 0.1, **{**where, "batch": 1, "flops": 1e6}),
        row("2_compiled", 0.064, **{**where, "flops": 64e6}),
        row("3_gone", 0.032, **{**where, "flops": 64e6}),
    ]
    _, page = build(tmp_path, benchmarks(tmp_path, *rows))
    lines = re.findall(r"<tr><td>.*?</tr>", section(page, "ladder").partition('class="steps"')[2], re.DOTALL)
    assert "<b>6.40 s</b>, from 1 image" in lines[0]
    assert "it is the equation" in lines[0]
    assert "<b>64.0 ms</b> 100×" in lines[1]
    assert "examples/ladder has no file of this name now" in lines[2]
    every = [row(file.stem, 0.1, **where) for file in ladder.SMALL_FILES.glob("[0-9]*.py")]
    _, page = build(tmp_path, benchmarks(tmp_path, *every))
    assert len(every) > 10
    assert len(re.findall("<details><summary><b>[0-9]+_", section(page, "ladder"))) == len(every)


def test_several_cores_are_compared_with_one_of_the_same(tmp_path: Path) -> None:
    rows = [row("jit", 8e-3), row("jit-tiled", 2e-3), row("jit-tiled", 1e-3, threads=2)]
    _, page = build(tmp_path, benchmarks(tmp_path, *rows))
    rung = page.partition('id="rung-jit-tiled"')[2].partition("</article>")[0]
    assert "<td>4.0×</td>" in rung
    assert "<td>2.0×<small> over one core</small></td>" in rung


def test_again_rows_give_the_noise_and_a_verdict(tmp_path: Path) -> None:
    for seconds, verdict in ((1.01e-3, "quiet"), (1.06e-3, "noisy"), (1.3e-3, "unusable")):
        file = benchmarks(tmp_path, row("jit-tiled", 1e-3), row("torch", 1.2e-3), row("jit-tiled", seconds, again=True))
        assert read([file]).verdict()[0] == verdict
        _, page = build(tmp_path, file)
        assert f'class="verdict {verdict}"' in page
    assert 'class="tie"' in page, "20 % cannot be told where the same thing differs by 30 %"


def test_passes_of_a_row_are_one_row(tmp_path: Path) -> None:
    found = read([benchmarks(tmp_path, row("jit", 2e-3, **{"pass": 1}), row("jit", 1e-3))])
    (one,) = found.rows
    assert one.seconds == pytest.approx(2**0.5 * 1e-3)
    assert [len(rounds) for rounds in one.passes] == [5, 5]


def test_a_later_files_rows_are_compared_with_its_own_torch(tmp_path: Path) -> None:
    """Times of another day are no further pass of a run, and what was measured beside them says how fast they are."""
    study = benchmarks(tmp_path, row("jit-tiled", 1e-3), row("torch", 2e-3), row("torch", 2e-3, **{"pass": 1}))
    mine = tmp_path / "mine.json"
    rows = row("mine", 3e-3), row("torch", 6e-3)
    mine.write_text(json.dumps({"machine_info": MACHINE, "benchmarks": rows, "variants": ["mine", "torch"]}))
    found = read([study, mine])
    assert [(each.variant, len(each.passes)) for each in found.rows] == [("jit-tiled", 1), ("torch", 2), ("mine", 1)]
    assert found.one(variant="torch").seconds == pytest.approx(2e-3)  # type: ignore[union-attr]
    assert found.one(variant="mine").ratio.middle == pytest.approx(2)  # type: ignore[union-attr]
    _, page = build(tmp_path, study, mine)
    assert "1 row left out, of mine.json, which an earlier file has" in page


def test_rates_are_set_against_the_measured_peak(tmp_path: Path) -> None:
    machine = {"group": "machine", "layer": "machine", "quantity": "peak", "batch": 0, "flops": 4e9}
    peak = row("machine", 1e-3, noise=0, work="multiply-adds", **machine)
    _, page = build(tmp_path, benchmarks(tmp_path, row("jit", 1e-3, noise=0), row("torch", 1e-3), peak))
    rung = page.partition('id="rung-jit"')[2].partition("</article>")[0]
    assert "<td>1,000</td>" in rung
    assert "25 %" in rung


def test_points_above_the_ceiling_are_named(tmp_path: Path) -> None:
    machine = {"group": "machine", "layer": "machine", "quantity": "peak", "batch": 0, "flops": 0.9e9}
    peak = row("machine", 1e-3, work="multiply-adds", **machine)
    _, page = build(tmp_path, benchmarks(tmp_path, row("torch", 1e-3), row("jit", 2e-3), peak))
    assert "Above the ceiling (triangles):</b> torch (conv)." in page


def test_what_torch_leaves_of_the_peak_is_said(tmp_path: Path) -> None:
    machine = {"group": "machine", "layer": "machine", "quantity": "peak", "batch": 0, "flops": 4e9}
    rows = [row("machine", 1e-3, 0, work="multiply-adds", **machine)]
    rows += [row("torch", 1e-3 * n, 0, group="products", work=f"product {n}") for n in (1, 2)]
    rows += [row("jit-tiled", 0.5e-3, 0, group="products", work="product 1")]
    _, page = build(tmp_path, benchmarks(tmp_path, *rows))
    assert "4,000 GFLOP/s, they reach in matrix products 12 to 25 % (jit-tiled 50 %)" in section(page, "method")


def test_a_gpu_has_three_times(tmp_path: Path) -> None:
    gpu = {"group": "gpu", "device": "cuda", "end_to_end_seconds": [3e-3, 3e-3, 3e-3]}
    ours = row("cuda-tiled", 2e-4, kernel_seconds=[5e-5, 4e-5, 9e-5], **gpu)
    theirs = row("torch", 1e-4, kernel_seconds=[1e-4] * 3, **gpu)
    _, page = build(tmp_path, benchmarks(tmp_path, ours, theirs))
    line = section(page, "homework").partition("cuda-tiled</td>")[2].partition("</tr>")[0]
    assert line == "<td>50.0 µs</td><td>200 µs</td><td>3.00 ms</td><td>2.0×</td>"
    answer, page = build(tmp_path, benchmarks(tmp_path, row("jit-tiled", 1e-3), row("torch", 1e-3)))
    assert "Never run on a device" in page
    assert "No CUDA variant was ever run on a device." in answer[-1]


def test_what_is_missing_wrong_or_borrowed_is_named(tmp_path: Path) -> None:
    gap = {"row": "forward jax", "outcome": "skipped", "why": "Skipped: jax is not installed"}
    _, page = build(tmp_path, benchmarks(tmp_path, row("mine", 1e-3, borrows="jit"), gaps=(gap,)))
    assert "1 row skipped, jax is not installed: forward jax" in page
    assert "mine runs jit’s for conv2d" in page
    assert "training: no such results were given" in page
    assert "Not verified in the results given." in page
    assert "mine" in section(page, "layers")


def test_works_are_in_the_order_of_their_sizes(tmp_path: Path) -> None:
    rows = [row("torch", 1e-3, work=f"conv, {n}", batch=n) for n in (1024, 64, 1)]
    rows += [row("torch", 1e-3, group="network", work=f"forward, {n}", layer="network", batch=n) for n in (1000, 64, 1)]
    _, page = build(tmp_path, benchmarks(tmp_path, *rows))
    assert re.findall(r'name="images" [^>]*><span>(.*?)</span>', page) == [
        "1 image", "64 images", "1,024 images", "SimpleConvNet",
    ]  # fmt: skip
    heads = re.findall(r'<th scope="row">(forward, \d+)</th>', section(page, "layers"))
    assert heads == ["forward, 1", "forward, 64", "forward, 1000"]


def test_names_are_escaped(tmp_path: Path) -> None:
    name = "</script><script>alert(1)</script>"
    _, page = build(tmp_path, benchmarks(tmp_path, row(name, 1e-3), row("torch", 1e-3)))
    assert "<script>alert" not in page


def training(
    folder: Path, variant: str, seed: int, accuracy: float | None, data: str = "mnist", estimated: bool = False
) -> Path:
    config = {"variant": variant, "data": data, "limit": None, "device": "cpu", "threads": None, "seed": seed}
    epochs = [{"epoch": n, "seconds": 5000.0, "loss": 2.3, "accuracy": accuracy} for n in (1, 2)]
    content = {
        "kind": "jitconv-train", "config": config, "machine": MACHINE, "images": 60000, "warmup_seconds": 1.0,
        "estimated": estimated, "first_losses": [2.3], "epochs": epochs,
    }  # fmt: skip
    file = folder / f"train-{data}-{variant}-{seed}.json"
    file.write_text(json.dumps(content))
    return file


def test_a_training_that_was_estimated_says_so_and_seeds_are_averaged(tmp_path: Path) -> None:
    files = [training(tmp_path, "torch", seed, 0.98 + 0.01 * seed) for seed in range(2)]
    files += [training(tmp_path, "jit-tiled", seed, 0.981 + 0.01 * seed) for seed in range(2)]
    _, page = build(tmp_path, *files, training(tmp_path, "interpreted", 0, None, estimated=True))
    lines = section(page, "training")
    assert "98.50 ± 6.35 %" in lines
    assert "+0.10 ± 0.00 %" in lines, "seed by seed"
    assert "1.4 h, estimated" in lines


def test_a_training_on_another_processor_than_the_benchmarks_says_so(tmp_path: Path) -> None:
    measured, run = benchmarks(tmp_path, row("torch", 1e-3)), training(tmp_path, "torch", 0, 0.98)
    _, page = build(tmp_path, measured, run)
    assert "another processor" not in section(page, "training")
    content = json.loads(run.read_text())
    run.write_text(json.dumps(content | {"machine": MACHINE | {"numba_target": "haswell"}}))
    _, page = build(tmp_path, measured, run)
    assert "1.4 h, on another processor (haswell)" in section(page, "training")


def test_each_data_set_has_its_own_chart_and_lines_and_one_seed_has_no_interval(tmp_path: Path) -> None:
    files = [training(tmp_path, "torch", seed, 0.98 + 0.01 * seed) for seed in range(2)]
    files += [training(tmp_path, name, 0, 0.9, "fashion-mnist") for name in ("torch", "jit-tiled")]
    _, page = build(tmp_path, *files)
    lines = section(page, "training")
    assert len(re.findall("<svg", lines)) == 2
    assert 'aria-label="Test accuracy over epochs: Fashion-MNIST"' in lines
    (line,) = re.findall(r"<tr><th scope=.row.>Fashion-MNIST</th><td class=.words mine.>.*?</tr>", lines)
    assert "<td>1, so no interval</td><td>90.00 %</td>" in line
    assert "98.50 ± 6.35 %" in lines


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (311_456.0, "3.6 days"),
        (5000.0, "1.4 h"),
        (9.134, "9.13 s"),
        (0.353, "353 ms"),
        (7.02e-4, "702 µs"),
        (3e-8, "30.0 ns"),
    ],
)
def test_times_as_people_write_them(value: float, shown: str) -> None:
    assert words.seconds(value) == shown


@pytest.mark.parametrize(
    ("value", "shown"),
    [(29.4, "29×"), (1.052, "1.05×"), (0.62, "0.62×"), (0.04348, "1/23"), (18_400.0, "18,000×"), (1.0, "1.00×")],
)
def test_ratios_as_people_write_them(value: float, shown: str) -> None:
    assert words.times(value) == shown


def test_the_rungs_sources_are_the_projects_own() -> None:
    for rung in ladder.RUNGS:
        if rung.names and (ROOT / "jitconv" / rung.file).exists():
            text = ladder.code_of(rung)
            assert text, f"{rung.file} has none of {rung.names}"
            assert text.split("\n")[0] in (ROOT / "jitconv" / rung.file).read_text()
            whole = ladder.source(rung.file, rung.names)
            assert all(word in whole for word in rung.span), f"{rung.names} has no line with {rung.span}"
            marked = str(ladder.coloured(text, rung.marked)).count("<mark>")
            assert marked or not rung.marked, f"no line of {rung.names} has one of {rung.marked}"


def test_extract_gives_back_what_the_page_is_made_of(tmp_path: Path) -> None:
    """A page made of what was extracted is the same page, down to the last round."""
    rows = row("jit-tiled", 1e-3), row("jit-tiled", 1.1e-3, **{"pass": 1}), row("torch", 2e-3)
    file = benchmarks(tmp_path, *rows, row("torch", 2.1e-3, again=True))
    (tmp_path / "later.json").write_text(file.read_text().replace("jit-tiled", "mine"))
    for files in ([COMMITTED], [file, tmp_path / "later.json"]):
        _, page = build(tmp_path, *files)
        found = report.extract(tmp_path / "page.html")
        (tmp_path / "extracted.json").write_text(json.dumps(found))
        assert build(tmp_path, tmp_path / "extracted.json")[1] == page
    assert found["machines"][0]["file"] == "benchmarks.json"


def test_a_file_that_is_no_page_is_named(tmp_path: Path) -> None:
    (tmp_path / "other.html").write_text("<html></html>")
    with pytest.raises(ValueError, match="page must be one that jitconv report wrote"):
        report.extract(tmp_path / "other.html")


def test_readme_says_what_the_results_say(tmp_path: Path) -> None:
    """Every number that was measured stands between its marks, and those are of the committed results."""
    text = (ROOT / "README.md").read_text()
    before, _, rest = text.partition(readme.BEGIN)
    block, _, after = rest.partition(readme.END)
    assert block.strip() == readme.block(read([COMMITTED]))
    measured = re.findall(r"\d[\d.]* ?(?:ms|µs|GFLOP/s|×(?!\d)|s an epoch)", before + after)
    assert not measured, "these numbers come from nowhere"
    assert len(text.splitlines()) < 120
    assert "![" in before
    for variant in ("cuda", "cuda-tiled"):
        assert "never run on a device" in next(line for line in text.splitlines() if f"`{variant}`" in line)


def test_no_number_on_the_page_is_written_by_hand() -> None:
    """What is measured comes from results: the template and the sentences of the rungs hold no time, rate or ratio."""
    template = (ROOT / "jitconv" / "report" / "page.html.j2").read_text()
    words = re.sub(r"<style>.*?</style>|style=\"[^\"]*\"", "", template, flags=re.DOTALL)
    words = re.sub(r"\{\{.*?\}\}|\{%.*?%\}", "", words)
    words += " ".join(rung.say for rung in ladder.RUNGS) + " ".join(say for _, say in first.STAIRS)
    found = re.findall(r"\d[\d.,]* ?(?:ms|µs|s\b|GFLOP/s|GB/s|GiB|%|×(?!\d))", words)
    assert sorted(set(found)) == ["8×", "95 %"], "but the scale of the colours, and the coverage of intervals"


def test_committed_results_are_of_a_clean_commit() -> None:
    for file in COMMITTED.rglob("*.json"):
        commit = json.loads(file.read_text()).get("commit_info", {})
        if "pass" in file.read_text()[:5000]:  # results from before passes were made are replaced by the next study
            assert not commit.get("dirty"), file


def test_the_report_imports_no_torch(tmp_path: Path) -> None:
    file = benchmarks(tmp_path, row("jit-tiled", 1e-3), row("torch", 2e-3))
    code = f"""
import sys
from pathlib import Path
from jitconv import report
report.build([Path({str(file)!r})], Path({str(tmp_path / "page.html")!r}))
print("torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A page of few results, and that of the committed ones."""
    folder = tmp_path_factory.mktemp("pages")
    found = [folder / "few.html"]
    report.build([benchmarks(folder, row("jit-tiled", 1e-3), row("torch", 2e-3))], found[0])
    if COMMITTED.is_dir():
        found.append(folder / "committed.html")
        report.build([COMMITTED], found[1])
    return found


def test_a_page_is_one_file_of_a_size_to_send(pages: list[Path]) -> None:
    for page in pages:
        text = page.read_text()
        assert len(text.encode()) <= 1_500_000
        assert "default-src 'none'" in text
        assert not re.findall(r'(?:src|href)="(?!#|data:)[^"]*"|@import|url\((?!#)', text)
        assert not re.search(r"\d[eE][+-]\d", re.sub(r"<(script|style|svg).*?</\1>", "", text, flags=re.DOTALL))


@pytest.mark.skipif(shutil.which("chromium") is None, reason="chromium is not installed")
def test_the_page_loads_nothing_and_shows_no_error(pages: list[Path], tmp_path: Path) -> None:
    for page in pages:
        command = [*CHROMIUM, f"--user-data-dir={tmp_path / page.stem}", "--enable-logging=stderr"]
        done = subprocess.run([*command, "--dump-dom", page.as_uri()], capture_output=True, text=True, timeout=120)
        assert "How far can plain loops go" in done.stdout
        assert "CONSOLE" not in done.stderr
        assert 'aria-expanded="true"' in done.stdout or "scripted" in done.stdout


@pytest.mark.skipif(
    shutil.which("chromium") is None or shutil.which("npm") is None, reason="chromium or npm is missing"
)
def test_no_barrier_for_anyone(pages: list[Path], tmp_path: Path) -> None:
    """axe-core finds no violation, light and dark, on a wide screen and a narrow one; neither scrolls sideways."""
    install = ["npm", "install", "--silent", "--no-audit", "--no-fund", "axe-core@4.10.3"]
    subprocess.run(install, cwd=tmp_path, check=True, capture_output=True, timeout=300)
    axe = (tmp_path / "node_modules" / "axe-core" / "axe.min.js").read_text()
    for page, theme, width in ((pages[0], "dark", 500), (pages[-1], "light", 1280), (pages[-1], "dark", 500)):
        check = f"""<script>{axe}</script><script>
document.getElementById("theme-{theme}").click();
axe.run().then((found) => {{ const note = document.createElement("pre"); note.id = "axe";
  const all = found.violations.map((each) => [each.id, each.nodes.slice(0, 3).map((node) => node.html)]);
  note.textContent = JSON.stringify([all, document.documentElement.scrollWidth - innerWidth]);
  document.body.append(note); }});</script></body>"""
        checked = tmp_path / f"{page.stem}-{theme}-{width}.html"
        checked.write_text(page.read_text().replace("</body>", check))
        command = [*CHROMIUM, f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=20000"]
        command += [f"--window-size={width},900", "--dump-dom", checked.as_uri()]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        found = re.search(r'<pre id="axe">(.*?)</pre>', done.stdout, re.DOTALL)
        assert found, "axe did not run"
        violations, sideways = json.loads(html.unescape(found[1]))
        assert violations == [], f"{page.stem}, {theme}, {width}"
        assert sideways <= 0


def test_losses_are_of_the_faster_of_ours_and_not_to_winograd(tmp_path: Path) -> None:
    where = {"group": "models", "work": "squeezenet", "layer": "network"}
    names = {"jit-tiled": 4e-3, PLAN: 3e-3, "onnxruntime": 2e-3, "jit-winograd plan": 1e-3, "torch": 9e-3}
    _, page = build(tmp_path, benchmarks(tmp_path, *(row(name, time, **where) for name, time in names.items())))
    (lost,) = re.findall(r"<tr><th scope=.row. class=.work.>.*?</tr>", section(page, "losses"))
    assert re.findall('class="best">([^<]*)<', section(page, "networks")) == ["2.00 ms"]
    assert f">{PLAN}<" in lost
    assert ">ONNX Runtime<" in lost
    assert "0.67×" in lost


def test_a_flagged_plan_leaves_no_loss_to_the_layers(tmp_path: Path) -> None:
    where = {"group": "models", "work": "mobilenet", "layer": "network"}
    rows = [row(name, time, **where) for name, time in {"jit-tiled": 9e-3, PLAN: 1e-3, "onnxruntime": 2e-3}.items()]
    rows[1]["stats"]["data"] = [9e-4, 9e-4, 9e-4, 4e-3, 4e-3]
    lost = section(build(tmp_path, benchmarks(tmp_path, *rows))[1], "losses")
    assert "single layers against an engine" not in lost
    assert not re.findall("<tr><th scope=.row. class=.work.>", lost.partition("Where a plan is slower")[0])


def in_chromium(page: Path, script: str, folder: Path, without: bool = False, address: str = "") -> Any:
    """Return what a script appended to the page gives, as the page's own script left it, or without that."""
    text = page.read_text()
    if without:
        text = re.sub(r"<script>.*?</script>", "", text, flags=re.DOTALL)
    shown = """<script>const done = (value) => { const note = document.createElement("pre"); note.id = "found";
      note.textContent = JSON.stringify(value); document.body.append(note); };"""
    changed = folder / "changed.html"
    changed.write_text(text.replace("</body>", f"{shown}{script}</script></body>"))
    command = [*CHROMIUM, f"--user-data-dir={folder / 'profile'}", "--window-size=1280,900"]
    command += ["--virtual-time-budget=5000", "--dump-dom", changed.as_uri() + address]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    found = re.search(r'<pre id="found">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found, done.stderr[-2000:]
    return json.loads(html.unescape(found[1]))


@pytest.mark.skipif(shutil.which("chromium") is None, reason="chromium is not installed")
def test_switches_work_without_script(tmp_path: Path) -> None:
    rows = [row(name, 1e-3, work=f"conv, {n}", batch=n) for n in (1, 64) for name in ("jit-tiled", "torch")]
    rows += network(jit_tiled=1e-4, torch=4e-4, onnxruntime=2e-4)
    build(tmp_path, benchmarks(tmp_path, *rows))
    script = """
const shown = () => [...document.querySelectorAll("#heat tr")].filter((line) => line.offsetParent !== null)
  .map((line) => [...line.cells].filter((cell) => cell.offsetParent !== null))
  .map((cells) => cells.map((cell) => cell.innerText.split("\\n")[0]));
const paper = () => getComputedStyle(document.body).backgroundColor;
const found = { first: shown() };
document.getElementById("images-network").click(); found.network = shown();
document.getElementById("column-1").click(); found.without = shown();
document.getElementById("theme-dark").click(); found.dark = paper();
document.getElementById("theme-light").click(); found.light = paper();
done(found);"""
    found = in_chromium(tmp_path / "page.html", script, tmp_path, without=True)
    assert found["first"] == [["work", "jit-tiled", "torch"], ["conv", "1.00 ms", "1.00 ms"]]
    assert found["network"][0] == ["work", "jit-tiled", "torch", "ONNX Runtime"]
    assert found["without"] == [["work", "torch", "ONNX Runtime"], ["forward, 1", "400 µs", "200 µs"]]
    assert (found["dark"], found["light"]) == ("rgb(20, 22, 26)", "rgb(255, 254, 251)")


@pytest.mark.skipif(shutil.which("chromium") is None, reason="chromium is not installed")
def test_a_cell_shows_its_rounds_and_command_and_has_an_address(tmp_path: Path) -> None:
    file = benchmarks(tmp_path, row("jit-tiled", 1e-3), row("torch", 2e-3), *network(jit_tiled=1e-4, torch=4e-4))
    build(tmp_path, file)
    script = """
const saved = [], cells = [...document.querySelectorAll("#heat button[data-i]")];
const cell = (words) => cells.find((each) => each.innerText.includes(words));
window.Blob = class { constructor(parts) { saved.push(parts.join("")); } };
URL.createObjectURL = () => "#";
const detail = () => document.querySelector("#detail").innerText;
cell("2.00 ms").click();
const found = { detail: detail(), dots: document.querySelectorAll("#detail circle").length, hash: location.hash };
["json", "csv"].forEach((kind) => document.querySelector(`[data-save=${kind}]`).click());
done({ ...found, json: saved[0], csv: saved[1] });"""
    found = in_chromium(tmp_path / "page.html", script, tmp_path)
    assert "pytest torch" in found["detail"]
    assert found["dots"] == 5
    assert json.loads(found["json"]) == report.extract(tmp_path / "page.html")
    lines = found["csv"].splitlines()
    assert len(lines) == 5
    assert lines[1].startswith('"layers","conv, 64","forward","jit-tiled","1","0.001"')
    script = """done({ detail: document.querySelector("#detail").innerText,
      images: document.querySelector("input[name=images]:checked").value });"""
    again = in_chromium(tmp_path / "page.html", script, tmp_path, address=found["hash"])
    assert again == {"detail": found["detail"], "images": "64"}
    (link,) = set(re.findall(r'<a href="(#row[^"]*)"><b>jit-tiled', (tmp_path / "page.html").read_text()))
    again = in_chromium(tmp_path / "page.html", script, tmp_path, address=link)
    assert again["images"] == "network"
    assert "forward, 1, forward, jit-tiled" in again["detail"]
    state = "#layers?quantity=forward&images=network&cores=1&find=forward&sort=-torch&without=jit-tiled"
    script = """done([document.getElementById("filter").value, document.querySelector("[aria-sort]").innerText,
      document.querySelector("[data-column=jit-tiled]").checked,
      document.querySelector("input[name=images]:checked").value]);"""
    as_it_was = ["forward", "torch", False, "network"]
    assert in_chromium(tmp_path / "page.html", script, tmp_path, address=state) == as_it_was
