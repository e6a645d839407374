"""Readers of the file formats, and the sets as tensors."""

import gzip
import importlib.util
import os
import pickle
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from pilcro.data import (
    DATASETS,
    FetchError,
    cifar10,
    cifar10c,
    cifar10c_kinds,
    fashion_mnist,
    fashion_mnist_subset,
    loaders,
)
from pilcro.data.loaders import read_cifar_batch, read_idx, read_severity, shipped_folder


def idx(array, announced=None):
    shape = announced or array.shape
    return bytes([0, 0, 8, len(shape)]) + struct.pack(f">{len(shape)}I", *shape) + array.tobytes()


@pytest.fixture
def pixels():
    return np.random.default_rng(0).integers(0, 256, (5, 4, 3), np.uint8)


def test_read_idx(tmp_path, pixels):
    (tmp_path / "raw").write_bytes(idx(pixels))
    (tmp_path / "packed.gz").write_bytes(gzip.compress(idx(pixels)))
    np.testing.assert_array_equal(read_idx(tmp_path / "raw"), pixels)
    np.testing.assert_array_equal(read_idx(tmp_path / "packed.gz"), pixels)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: b"", "is not an IDX file of unsigned bytes: starts with b''"),
        (lambda data: data[:3], "is not an IDX file"),
        (lambda data: data[:10], "is not an IDX file"),
        (lambda data: b"\x89PNG" + data[4:], "is not an IDX file"),
        (lambda data: b"\0\0\x0d" + data[3:], "is not an IDX file"),  # floats
        (lambda data: b"\0\0\x08\0", "is not an IDX file"),  # no dimensions
        (lambda data: data[:-1], r"announces \(5, 4, 3\), 60 bytes, but holds 59"),
        (lambda data: data + b"x", r"announces \(5, 4, 3\), 60 bytes, but holds 61"),
        (lambda data: data[:4] + b"\xff" * 12 + data[16:], "but holds 60"),
    ],
)
def test_read_idx_refuses_a_damaged_file(tmp_path, pixels, damage, message):
    (tmp_path / "raw").write_bytes(damage(idx(pixels)))
    with pytest.raises(ValueError, match=message):
        read_idx(tmp_path / "raw")


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:-10],
        lambda data: data[:30] + b"\xff\xff\xff\xff" + data[34:],
        lambda data: data[:-8] + b"\0\0\0\0\0\0\0\0",
        lambda data: b"no gzip",
    ],
)
def test_read_idx_refuses_a_damaged_gzip(tmp_path, pixels, damage):
    (tmp_path / "packed.gz").write_bytes(damage(gzip.compress(idx(pixels), mtime=0)))
    with pytest.raises(ValueError, match=r"packed\.gz is not a whole gzip file"):
        read_idx(tmp_path / "packed.gz")


def cifar_batch(rng, count):
    rows = rng.integers(0, 256, (count, 3073), np.uint8)
    rows[:, 0] %= 10
    return rows


def test_read_cifar_batch(tmp_path):
    rows = cifar_batch(np.random.default_rng(0), 3)
    (tmp_path / "batch").write_bytes(rows.tobytes())
    images, labels = read_cifar_batch(tmp_path / "batch")
    assert images.shape == (3, 3, 32, 32)
    assert labels.tolist() == rows[:, 0].tolist()
    # The format: after the label 1,024 red, then 1,024 green, then 1,024 blue values, row by row.
    assert images[1, 0, 0, 1] == rows[1, 2]
    assert images[1, 1, 2, 3] == rows[1, 1 + 1024 + 2 * 32 + 3]
    assert images[2, 2, 31, 31] == rows[2, 3072]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "has 0 bytes"),
        (b"\0" * 3072, "has 3,072 bytes, expected a positive multiple of 3,073"),
        (b"\0" * 3073 + b"\x0a" + b"\0" * 3072, "holds the label 10, expected 0 to 9"),
    ],
)
def test_read_cifar_batch_refuses_a_damaged_file(tmp_path, data, message):
    (tmp_path / "batch").write_bytes(data)
    with pytest.raises(ValueError, match=message):
        read_cifar_batch(tmp_path / "batch")


def test_nothing_is_unpickled(tmp_path):
    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "exploded"),)

    for read in (read_cifar_batch, read_idx, lambda path: read_severity(path, 1)):
        (tmp_path / "file").write_bytes(pickle.dumps(Bomb()))
        with pytest.raises(ValueError, match="file"):
            read(tmp_path / "file")
    np.save(tmp_path / "file.npy", np.array([Bomb()] * 5, object))
    with pytest.raises(ValueError, match="is not a whole"):
        read_severity(tmp_path / "file.npy", 1)
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize(("train", "count"), [(True, 6000), (False, 1000)])
def test_fashion_mnist_subset(train, count):
    images, labels = fashion_mnist_subset(train)
    assert images.shape == (count, 1, 28, 28)
    assert images.dtype == torch.float32
    assert (images.min(), images.max()) == (0, 1)
    assert labels.dtype == torch.int64
    assert labels.bincount().tolist() == [count // 10] * 10
    assert images[labels == 1].mean((0, 1)).std() > 0.1  # trousers: legs and background
    indices = np.loadtxt(
        shipped_folder() / f"fashion-mnist-subset/{'train' if train else 'test'}-indices.txt",
        dtype=int,
    )
    assert len(indices) == count
    assert (np.diff(indices) > 0).all()
    assert indices[-1] < (60_000 if train else 10_000)


def test_the_subset_can_be_written_again(tmp_path):
    """make.py's writer gives the files that ship, byte for byte of their content."""
    folder = shipped_folder() / "fashion-mnist-subset"
    spec = importlib.util.spec_from_file_location("make_subset", folder / "make.py")
    make = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(make)
    shipped = folder / "test-images-idx3-ubyte.gz"
    make.write_idx(tmp_path / "again.gz", read_idx(shipped))
    assert gzip.decompress((tmp_path / "again.gz").read_bytes()) == gzip.decompress(
        shipped.read_bytes()
    )
    labels = np.repeat(np.arange(3), 7)
    chosen = make.choose(labels, 4, np.random.default_rng(1))
    assert np.bincount(labels[chosen]).tolist() == [4, 4, 4]
    assert (np.diff(chosen) > 0).all()


def test_the_notice_ships_with_the_subset():
    notice = (shipped_folder() / "fashion-mnist-subset" / "LICENSE").read_text()
    assert "Copyright (c) 2017 Zalando SE" in notice
    assert "Permission is hereby granted" in notice


def test_shipped_folder_of_an_installed_package(tmp_path, monkeypatch):
    monkeypatch.setattr(loaders, "__file__", str(tmp_path / "pilcro" / "data" / "loaders.py"))
    assert shipped_folder() == tmp_path / "data"
    (tmp_path / "pilcro" / "data" / "shipped").mkdir(parents=True)
    assert shipped_folder() == tmp_path / "pilcro" / "data" / "shipped"


@pytest.mark.parametrize("load", [cifar10, fashion_mnist])
def test_a_set_that_is_not_there_is_never_downloaded(load, tmp_path):
    name = load.__name__
    with pytest.raises(FetchError, match=rf"in {tmp_path}: run `pilcro fetch {name}` first"):
        load(folder=tmp_path)
    assert list(tmp_path.iterdir()) == []


def write_set(folder, contents):
    folder.mkdir()
    for name, data in contents.items():
        (folder / name).write_bytes(data)


def test_cifar10(tmp_path, register):
    rng = np.random.default_rng(0)
    batches = {file.name: cifar_batch(rng, 4) for file in DATASETS["cifar10"].files}
    contents = {name: rows.tobytes() for name, rows in batches.items()}
    register(contents, name="cifar10")
    write_set(tmp_path / "cifar10", contents)
    images, labels = cifar10(train=True, folder=tmp_path)
    assert images.shape == (20, 3, 32, 32)
    assert images.dtype == torch.float32
    torch.testing.assert_close(
        images[4].flatten(), torch.from_numpy(batches["data_batch_2.bin"][0, 1:]) / 255
    )
    assert labels[4] == batches["data_batch_2.bin"][0, 0]
    assert labels.dtype == torch.int64
    images, labels = cifar10(train=False, folder=tmp_path)
    assert images.shape == (4, 3, 32, 32)
    assert labels.tolist() == batches["test_batch.bin"][:, 0].tolist()


def test_fashion_mnist(tmp_path, register):
    rng = np.random.default_rng(0)
    arrays = {
        "train-images-idx3-ubyte": rng.integers(0, 256, (6, 28, 28), np.uint8),
        "train-labels-idx1-ubyte": np.arange(6, dtype=np.uint8),
        "t10k-images-idx3-ubyte": rng.integers(0, 256, (3, 28, 28), np.uint8),
        "t10k-labels-idx1-ubyte": np.arange(2, dtype=np.uint8),
    }
    contents = {name: idx(array) for name, array in arrays.items()}
    register(contents, name="fashion_mnist")
    write_set(tmp_path / "fashion_mnist", contents)
    images, labels = fashion_mnist(train=True, folder=tmp_path)
    expected = torch.from_numpy(arrays["train-images-idx3-ubyte"])[:, None] / 255
    torch.testing.assert_close(images, expected)
    assert labels.tolist() == list(range(6))
    with pytest.raises(ValueError, match="3 images, but 2 labels"):
        fashion_mnist(train=False, folder=tmp_path)


@pytest.fixture
def corrupted(tmp_path):
    """CIFAR-10-C of two images: three kinds, five severities, and the labels."""
    folder, rng = tmp_path / "CIFAR-10-C", np.random.default_rng(0)
    folder.mkdir()
    for name in ("gaussian_noise", "jpeg_compression", "fog"):
        np.save(folder / f"{name}.npy", rng.integers(0, 256, (10, 32, 32, 3), np.uint8))
    np.save(folder / "labels.npy", np.array([3, 8] * 5, np.uint8))
    return folder


@pytest.mark.parametrize("severity", [1, 3, 5])
def test_cifar10c(tmp_path, corrupted, severity):
    files = {"gaussian_noise": "gaussian_noise", "jpeg": "jpeg_compression", "fog": "fog"}
    for kind, file in files.items():
        images, labels = cifar10c(kind, severity, folder=tmp_path)
        stored = np.load(corrupted / f"{file}.npy")[2 * severity - 2 :]
        assert images.shape == (2, 3, 32, 32)
        assert images.dtype == torch.float32
        assert images.is_contiguous()
        for image, row, column, channel in ((0, 0, 1, 2), (1, 31, 4, 0)):
            want = float(stored[image, row, column, channel]) / 255
            assert float(images[image, channel, row, column]) == pytest.approx(want)
        assert labels.tolist() == [3, 8]
        assert labels.dtype == torch.int64


def test_kinds_of_cifar10c_that_are_there(tmp_path, corrupted, monkeypatch):
    assert cifar10c_kinds(tmp_path) == ["fog", "gaussian_noise", "jpeg"]
    monkeypatch.setenv("PILCRO_DATA", str(tmp_path))
    assert cifar10c_kinds() == ["fog", "gaussian_noise", "jpeg"]
    (corrupted / "labels.npy").unlink()
    assert cifar10c_kinds(tmp_path) == []
    assert cifar10c_kinds(tmp_path / "nowhere") == []


@pytest.mark.parametrize("name", ["gaussian_noise.npy", "labels.npy"])
def test_cifar10c_that_is_not_there(tmp_path, corrupted, name):
    (corrupted / name).unlink()
    with pytest.raises(
        FetchError, match=rf"{corrupted / name} is missing.* archive in {tmp_path}$"
    ):
        cifar10c("gaussian_noise", 1, folder=tmp_path)


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        ("fog", np.zeros((10, 32, 32, 3)), r"uint8 \(5 N, 32, 32, 3\), got float64"),
        ("fog", np.zeros((10, 3, 32, 32), np.uint8), r"got uint8 \(10, 3, 32, 32\)"),
        ("fog", np.zeros((9, 32, 32, 3), np.uint8), r"got uint8 \(9, 32, 32, 3\)"),
        ("fog", np.zeros((15, 32, 32, 3), np.uint8), "3 images, but 2 labels"),
        ("fog", np.zeros((0, 32, 32, 3), np.uint8), r"got uint8 \(0, 32, 32, 3\)"),
        ("fog", np.array(3, np.uint8), r"got uint8 \(\)"),
        ("labels", np.zeros((10, 1), np.uint8), r"uint8 \(5 N\), got uint8 \(10, 1\)"),
        ("labels", np.array(3, np.uint8), r"got uint8 \(\)"),
        ("labels", np.full(10, 10, np.uint8), "holds the label 10, expected 0 to 9"),
    ],
)
def test_cifar10c_refuses_other_arrays(tmp_path, corrupted, name, array, message):
    np.save(corrupted / f"{name}.npy", array)
    with pytest.raises(ValueError, match=message):
        cifar10c("fog", 1, folder=tmp_path)


@pytest.mark.parametrize(
    "damage", [lambda data: b"", lambda data: data[:-1], lambda data: b"PK" + data[2:]]
)
def test_cifar10c_refuses_a_damaged_file(tmp_path, corrupted, damage):
    path = corrupted / "fog.npy"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=r"fog\.npy is not a whole \.npy file"):
        cifar10c("fog", 1, folder=tmp_path)


def test_cifar10c_of_an_unknown_severity(tmp_path, corrupted):
    with pytest.raises(ValueError, match="from 1 to 5, got 0"):
        cifar10c("fog", 0, folder=tmp_path)


def test_import_and_subset_need_torch_and_numpy_only():
    program = """
import sys
heavy = ["torchvision", "matplotlib", "pooch", "PIL", "filelock", "requests"]
before = set(sys.modules)
import torch, numpy
allowed = set(sys.modules) - before
import pilcro.data
pilcro.data.fashion_mnist_subset()
print([name for name in heavy if name in sys.modules and name not in allowed])
"""
    command = [sys.executable, "-W", "error", "-c", program]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
