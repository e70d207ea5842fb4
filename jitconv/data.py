"""The digits: a bundled part of MNIST, the whole of MNIST or Fashion-MNIST through torchvision, or IDX files."""

import gzip
import importlib
import math
import struct
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import TensorDataset

NAMES = ("mnist-10k", "mnist", "fashion-mnist")
MEAN, STD = 0.1307, 0.3081  # of MNIST's pixels in [0, 1]: every image is shifted and scaled by them
PARTS = {"train": "train", "test": "t10k"}
BUNDLED = Path(__file__).parent / "bundled" / "mnist-10k"

_schemas: Any = None  # torch forgets the operators of a library that nobody holds


def load(name: str = "mnist-10k", data_dir: str | Path | None = None) -> tuple[TensorDataset, TensorDataset]:
    """Return the training and the test set: images float32 (N, 1, 28, 28), normalised, and labels int64 (N,).

    "mnist-10k" is bundled. "mnist" and "fashion-mnist" are read from `data_dir`, a folder of IDX files (plain or .gz),
    or else kept there by torchvision, which downloads them. Raises ValueError for an unknown name or a damaged file,
    and RuntimeError where a download fails.
    """
    if name not in NAMES:
        raise ValueError(f"name must be one of {', '.join(NAMES)}, got {name!r}")
    folder = BUNDLED if name == "mnist-10k" and data_dir is None else Path(data_dir or "data")
    if name != "mnist-10k" and _idx_file(folder, "train-images-idx3-ubyte") is None:
        return _download(name, folder)
    return _read_part(folder, "train"), _read_part(folder, "t10k")


def read_idx(path: Path) -> np.ndarray:
    """Return the array of unsigned bytes in an IDX file, plain or gzipped; ValueError names a damaged file."""
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        zero, kind, ndim = struct.unpack(">HBB", content[:4])
        shape = struct.unpack(f">{ndim}I", content[4 : 4 + 4 * ndim])
    except (OSError, EOFError, struct.error, gzip.zlib.error) as error:  # type: ignore[attr-defined]
        raise ValueError(f"{path} is not a readable IDX file: {error}") from None
    if zero or kind != 8:
        raise ValueError(f"{path} is not an IDX file of unsigned bytes: it begins with {content[:4].hex()}")
    values = np.frombuffer(content, np.uint8, offset=4 + 4 * ndim)
    if values.size != math.prod(shape):
        raise ValueError(f"{path} must hold {math.prod(shape)} values for its shape {shape}, got {values.size}")
    return values.reshape(shape)


def _idx_file(folder: Path, stem: str) -> Path | None:
    return next((path for path in (folder / stem, folder / f"{stem}.gz") if path.is_file()), None)


def _read_part(folder: Path, prefix: str) -> TensorDataset:
    paths = []
    for stem in (f"{prefix}-images-idx3-ubyte", f"{prefix}-labels-idx1-ubyte"):
        path = _idx_file(folder, stem)
        if path is None:
            raise ValueError(f"data_dir must hold {stem} or {stem}.gz, got {folder}")
        paths.append(path)
    pixels, labels = map(read_idx, paths)
    if pixels.shape[1:] != (28, 28) or labels.shape != pixels.shape[:1]:
        raise ValueError(f"{paths[0]} must hold (N, 28, 28) and {paths[1]} (N,), got {pixels.shape} and {labels.shape}")
    if labels.size and labels.max() > 9:
        raise ValueError(f"{paths[1]} must hold digits 0…9, got {labels.max()}")
    return _dataset(torch.from_numpy(pixels.copy()), torch.from_numpy(labels.copy()))


def _dataset(pixels: torch.Tensor, labels: torch.Tensor) -> TensorDataset:
    images = (pixels[:, None].float() / 255 - MEAN) / STD
    return TensorDataset(images, labels.long())


def _download(name: str, folder: Path) -> tuple[TensorDataset, TensorDataset]:
    datasets = torchvision().datasets
    kind = {"mnist": datasets.MNIST, "fashion-mnist": datasets.FashionMNIST}[name]
    try:
        parts = [kind(folder, train=train, download=True) for train in (True, False)]
    except (RuntimeError, OSError) as error:
        raise RuntimeError(
            f"{name} could not be downloaded to {folder} ({error}): give data_dir a folder with its IDX files, "
            "or use mnist-10k, which is bundled"
        ) from None
    return _dataset(parts[0].data, parts[0].targets), _dataset(parts[1].data, parts[1].targets)


def torchvision() -> Any:
    """Return torchvision with its datasets; one built for another torch than this lacks operators and gets their names.

    Raises RuntimeError where it is not installed.
    """
    global _schemas
    try:
        return importlib.import_module("torchvision.datasets") and importlib.import_module("torchvision")
    except ModuleNotFoundError:
        raise RuntimeError("torchvision is not installed: pip install 'jitconv[study]'") from None
    except RuntimeError as error:  # operator torchvision::nms does not exist
        if "torchvision::" not in str(error):
            raise
    if _schemas is None:
        _schemas = torch.library.Library("torchvision", "DEF")
        for operator in ("nms", "qnms"):
            _schemas.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return importlib.import_module("torchvision.datasets") and importlib.import_module("torchvision")
