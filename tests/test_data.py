"""The digits: what is bundled, what a folder may hold, and that a damaged file is named."""

import gzip
import shutil
import sys
from pathlib import Path

import pytest
import torch

from jitconv import data


def test_the_bundled_digits() -> None:
    train, test = data.load()
    for part, size in ((train, 8000), (test, 2000)):
        images, labels = part.tensors
        assert images.shape == (size, 1, 28, 28)
        assert images.dtype == torch.float32
        assert labels.dtype == torch.int64
        assert labels.bincount().min() > 0.08 * size
    assert len(train.tensors[1][:50].unique()) > 5, "the order must not go digit by digit"
    assert abs(float(train.tensors[0].mean())) < 0.05


def test_no_image_is_in_both_parts() -> None:
    train, test = (part.tensors[0].flatten(1) for part in data.load())
    known = {image.numpy().tobytes() for image in train}
    assert not [image for image in test if image.numpy().tobytes() in known]


@pytest.mark.parametrize("packed", [True, False])
def test_a_folder_of_idx_files(tmp_path: Path, packed: bool) -> None:
    for file in data.BUNDLED.glob("*.gz"):
        if packed:
            shutil.copy(file, tmp_path)
        else:
            (tmp_path / file.stem).write_bytes(gzip.decompress(file.read_bytes()))
    train, _ = data.load("mnist", tmp_path)
    assert torch.equal(train.tensors[0], data.load()[0].tensors[0])


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    for file in data.BUNDLED.glob("*.gz"):
        shutil.copy(file, tmp_path)
    images = tmp_path / "train-images-idx3-ubyte.gz"
    whole = images.read_bytes()
    pixels = gzip.decompress(whole)
    for content in (b"", whole[:1000], b"not gzip", gzip.compress(pixels[:-1]), gzip.compress(b"\1" + pixels[1:])):
        images.write_bytes(content)
        with pytest.raises(ValueError, match=images.name):
            data.load("mnist", tmp_path)
    images.unlink()
    with pytest.raises(ValueError, match="data_dir must hold train-images-idx3-ubyte"):
        data.load("mnist", tmp_path)


def test_labels_and_images_must_belong_together(tmp_path: Path) -> None:
    for file in data.BUNDLED.glob("*.gz"):
        shutil.copy(file, tmp_path)
    shutil.copy(tmp_path / "t10k-labels-idx1-ubyte.gz", tmp_path / "train-labels-idx1-ubyte.gz")
    with pytest.raises(ValueError, match=r"must hold \(N, 28, 28\)"):
        data.load("mnist", tmp_path)


def test_an_unknown_name() -> None:
    with pytest.raises(ValueError, match="name must be one of mnist-10k, mnist, fashion-mnist, got 'cifar'"):
        data.load("cifar")


def test_what_torchvision_has_downloaded_is_read(tmp_path: Path) -> None:
    raw = tmp_path / "FashionMNIST" / "raw"
    shutil.copytree(data.BUNDLED, raw)
    train, test = data.load("fashion-mnist", tmp_path)
    assert (len(train), len(test)) == (8000, 2000)
    (raw / "t10k-labels-idx1-ubyte.gz").write_bytes(b"cut")
    with pytest.raises(ValueError, match="t10k-labels-idx1-ubyte"):
        data.load("fashion-mnist", tmp_path)


def test_a_failed_download_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*args: object, **others: object) -> None:
        raise RuntimeError("no network:\ntried everything")

    monkeypatch.setattr(data.torchvision().datasets, "MNIST", fails)
    with pytest.raises(ConnectionError, match=r"\(no network\): give data_dir a folder with its IDX files") as raised:
        data.load("mnist", tmp_path)
    assert "\n" not in str(raised.value)


def test_torchvision_loads_beside_this_torch() -> None:
    assert data.torchvision().datasets.FashionMNIST
    assert "torchvision" in sys.modules
