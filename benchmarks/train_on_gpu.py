"""python -m benchmarks.train_on_gpu FOLDER: train on the bundled digits through the GPU's variants, results to FOLDER.

Each run is a file train-NAME.json as `jitconv train` writes it; this needs nothing but torch and numba-cuda.
"""

import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from jitconv.train import Config, Run

EPOCHS = 20
RUNS: dict[str, dict[str, Any]] = {
    "torch": {"variant": "torch"},
    "torch-graph": {"variant": "torch", "graph": True},
    "cuda": {"variant": "cuda", "epochs": 2},
    "cuda-tiled": {"variant": "cuda-tiled"},
    "cuda-tiled-graph": {"variant": "cuda-tiled", "graph": True},
}


def main(folder: Path, device: str = "cuda", epochs: int = EPOCHS) -> None:
    """Train every run on `device`, for so many epochs unless it says fewer."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, options in RUNS.items():
        config = Config(**{"device": device, "epochs": epochs, **options})
        with tempfile.TemporaryDirectory() as place:
            result = Run(config, Path(place)).run(lambda done, total: None, lambda epoch: None)
            shutil.copy(Path(place) / "result.json", folder / f"train-{name}.json")
        last = result["epochs"][-1]
        print(f"{name}: {last['seconds']:.3f} s an epoch, loss {last['loss']:.4f}, {last['accuracy']:.2%} right")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
