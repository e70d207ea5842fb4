"""The digits: a bundled part of MNIST, the whole of MNIST or Fashion-MNIST through torchvision, or IDX files."""

import gzip
import importlib
import math
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import TensorDataset

DOWNLOADS = {"mnist": "MNIST", "fashion-mnist": "FashionMNIST"}  # as torchvision.datasets calls them
MNIST = (0.1307, 0.3081)
MEAN_AND_STD = {"mnist-10k": MNIST, "mnist": MNIST, "fashion-mnist": (0.2860, 0.3530)}  # of pixels in [0, 1]
STEMS = tuple(f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1"))
BUNDLED = Path(__file__).parent / "bundled" / "mnist-10k"

_schemas: Any = None  # torch forgets the operators of a library that nobody holds


def load(name: str = "mnist-10k", data_dir: str | Path | None = None) -> tuple[TensorDataset, TensorDataset]:
    """Return the training and the test set: images float32 (N, 1, 28, 28) and labels int64 (N,).

    The images are normalised with the mean and the standard deviation of the whole data set's training pixels.

    "mnist-10k" is bundled. "mnist" and "fashion-mnist" are read from `data_dir`, a folder of IDX files (plain or .gz),
    or else kept there by torchvision, which downloads them. Raises ValueError for an unknown name or a damaged file,
    and ConnectionError where a download fails.
    """
    if name not in MEAN_AND_STD:
        raise ValueError(f"name must be one of {', '.join(MEAN_AND_STD)}, got {name!r}")
    folder = BUNDLED if name == "mnist-10k" and data_dir is None else Path(data_dir or "data")
    if name in DOWNLOADS and not any(_idx_file(folder, stem) for stem in STEMS):
        folder = _downloaded(name, folder)
    return _read_part(folder, "train", *MEAN_AND_STD[name]), _read_part(folder, "t10k", *MEAN_AND_STD[name])


def read_idx(path: Path) -> np.ndarray:
    """Return the array of unsigned bytes in an IDX file, plain or gzipped; ValueError names a damaged file."""
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        zero, kind, ndim = struct.unpack(">HBB", content[:4])
        shape = struct.unpack(f">{ndim}I", content[4 : 4 + 4 * ndim])
    except (OSError, EOFError, struct.error, zlib.error) as error:
        raise ValueError(f"{path} is not a readable IDX file: {error}") from None
    if zero or kind != 8:
        raise ValueError(f"{path} is not an IDX file of unsigned bytes: it begins with {content[:4].hex()}")
    values = np.frombuffer(content, np.uint8, offset=4 + 4 * ndim)
    if values.size != math.prod(shape):
        raise ValueError(f"{path} must hold {math.prod(shape)} values for its shape {shape}, got {values.size}")
    return values.reshape(shape)


def _idx_file(folder: Path, stem: str) -> Path | None:
    return next((path for path in (folder / stem, folder / f"{stem}.gz") if path.is_file()), None)


def _read_part(folder: Path, prefix: str, mean: float, std: float) -> TensorDataset:
    paths = []
    for stem in (stem for stem in STEMS if stem.startswith(prefix)):
        path = _idx_file(folder, stem)
        if path is None:
            raise ValueError(f"data_dir must hold {stem} or {stem}.gz, got {folder}")
        paths.append(path)
    pixels, labels = map(read_idx, paths)
    if pixels.shape[1:] != (28, 28) or labels.shape != pixels.shape[:1] or not labels.size:
        raise ValueError(f"{paths[0]} must hold (N, 28, 28) and {paths[1]} (N,), got {pixels.shape} and {labels.shape}")
    if labels.max() > 9:
        raise ValueError(f"{paths[1]} must hold digits 0…9, got {labels.max()}")
    images = (torch.tensor(pixels)[:, None].float() / 255 - mean) / std
    return TensorDataset(images, torch.tensor(labels).long())


def _downloaded(name: str, folder: Path) -> Path:
    """Return where torchvision keeps the IDX files under `folder`, after having it download those that are missing."""
    raw = folder / DOWNLOADS[name] / "raw"
    if not all(_idx_file(raw, stem) for stem in STEMS):
        try:
            getattr(torchvision().datasets, DOWNLOADS[name])(folder, download=True)
        except (RuntimeError, OSError) as error:
            reason = str(error).partition("\n")[0].rstrip(":")
            raise ConnectionError(
                f"{name} could not be downloaded to {folder} ({reason}): give data_dir a folder with its IDX files, "
                "or use mnist-10k, which is bundled"
            ) from error
    return raw


def torchvision() -> Any:
    """Return torchvision with its datasets; one built for another torch than this lacks operators and gets their names.

    Raises ImportError where it is not installed.
    """
    global _schemas
    try:
        return importlib.import_module("torchvision.datasets") and importlib.import_module("torchvision")
    except ModuleNotFoundError:
        raise ImportError("torchvision is not installed: pip install 'jitconv[study]'") from None
    except RuntimeError as error:  # operator torchvision::nms does not exist
        if "torchvision::" not in str(error):
            raise
    if _schemas is None:
        _schemas = torch.library.Library("torchvision", "DEF")
        for operator in ("nms", "qnms"):
            _schemas.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return importlib.import_module("torchvision.datasets") and importlib.import_module("torchvision")
