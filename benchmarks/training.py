"""`make training DATA=FOLDER`: SimpleConvNet on a whole data set, with several seeds; results beside the study's.

Each run can be interrupted and goes on from its last epoch.
"""

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

from benchmarks.study import TRAININGS

RUNS = ("torch", "jit-tiled", "plan")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training", description=__doc__)
    parser.add_argument("results", type=Path)
    parser.add_argument("--data-dir", help="a folder of IDX files, or where torchvision keeps its downloads")
    parser.add_argument("--data", default="mnist", choices=("mnist", "fashion-mnist", "mnist-10k"))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=20)
    options = parser.parse_args()
    options.results.mkdir(parents=True, exist_ok=True)
    for seed in range(options.seeds):
        for run in RUNS:
            name = f"{options.data}-{run}-{seed}"
            out = Path("runs/training") / name
            command = [sys.executable, "-m", "jitconv", "train", "--data", options.data, *TRAININGS[run].split()]
            command += ["--seed", str(seed), "--epochs", str(options.epochs), "--out", str(out)]
            command += ["--data-dir", options.data_dir] if options.data_dir else []
            command += ["--resume"] if (out / "checkpoint.pt").exists() else []
            print(name, file=sys.stderr, flush=True)
            subprocess.run(command, check=True)
            shutil.copy(out / "result.json", options.results / f"train-{name}.json")


if __name__ == "__main__":
    main()
