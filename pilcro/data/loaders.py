"""Read the data sets into tensors. Nothing is downloaded here and nothing is unpickled."""

import gzip
import math
import os
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .fetching import FetchError, data_folder, is_fetched

CIFAR10C = "CIFAR-10-C"
CIFAR10C_FILES = {"jpeg": "jpeg_compression"}  # our kinds whose files have other names


def fashion_mnist_subset(train: bool = True) -> tuple[Tensor, Tensor]:
    """The part of Fashion-MNIST that ships with pilcro: 6,000 images to train, 1,000 to test.

    Returns images (N, 1, 28, 28) float32 in [0, 1] and labels (N,) int64; every class has
    N / 10 images. ``DATASETS["fashion_mnist"].classes`` names the classes.

    >>> images, labels = fashion_mnist_subset(train=False)
    >>> images.shape, labels.bincount().unique().tolist()
    (torch.Size([1000, 1, 28, 28]), [100])
    """
    part = "train" if train else "test"
    return _read_idx_pair(shipped_folder() / "fashion-mnist-subset", part, ".gz")


def fashion_mnist(
    train: bool = True, folder: str | os.PathLike | None = None
) -> tuple[Tensor, Tensor]:
    """Fashion-MNIST: images (N, 1, 28, 28) float32 in [0, 1], labels (N,) int64.

    N is 60,000 to train, 10,000 to test. The folder is that of ``fetch``.
    Raises FetchError when the set has not been fetched, ValueError when a file is malformed.

    >>> images, labels = fashion_mnist(train=False)  # doctest: +SKIP
    >>> images.shape  # doctest: +SKIP
    torch.Size([10000, 1, 28, 28])
    """
    path = _fetched("fashion_mnist", folder)
    return _read_idx_pair(path, "train" if train else "t10k")


def cifar10(train: bool = True, folder: str | os.PathLike | None = None) -> tuple[Tensor, Tensor]:
    """CIFAR-10: images (N, 3, 32, 32) float32 in [0, 1], labels (N,) int64.

    N is 50,000 to train, 10,000 to test. The folder is that of ``fetch``.
    Raises FetchError when the set has not been fetched, ValueError when a file is malformed.

    >>> images, labels = cifar10(train=False)  # doctest: +SKIP
    >>> images.shape  # doctest: +SKIP
    torch.Size([10000, 3, 32, 32])
    """
    path = _fetched("cifar10", folder)
    names = [f"data_batch_{i}.bin" for i in range(1, 6)] if train else ["test_batch.bin"]
    images, labels = zip(*(read_cifar_batch(path / name) for name in names), strict=True)
    return _as_tensors(np.concatenate(images), np.concatenate(labels))


def cifar10c(
    kind: str, severity: int, folder: str | os.PathLike | None = None
) -> tuple[Tensor, Tensor]:
    """CIFAR-10-C, if you have it: images (10,000, 3, 32, 32) float32 in [0, 1], labels (10,000,).

    The authors' files lie in ``CIFAR-10-C`` inside the folder of ``fetch``, which does not bring
    them. The order is that of ``cifar10(train=False)``.

    Args:
        kind: one of ``cifar10c_kinds()``: the name of a file, but ``jpeg`` for JPEG compression.
        severity: 1 to 5.
        folder: as for ``fetch``.

    Raises:
        FetchError: a file is not there.
        ValueError: an unknown severity or a malformed file.

    >>> images, labels = cifar10c("fog", 5)  # doctest: +SKIP
    >>> images.shape  # doctest: +SKIP
    torch.Size([10000, 3, 32, 32])
    """
    if severity not in range(1, 6):
        raise ValueError(f"severity must be an int from 1 to 5, got {severity!r}")
    path = data_folder(folder) / CIFAR10C
    images = read_severity(path / f"{CIFAR10C_FILES.get(kind, kind)}.npy", severity, (32, 32, 3))
    labels = read_severity(path / "labels.npy", severity)
    if labels.max() > 9:
        raise ValueError(f"{path / 'labels.npy'} holds the label {labels.max()}, expected 0 to 9")
    return _as_tensors(np.ascontiguousarray(images.transpose(0, 3, 1, 2)), labels)


def cifar10c_kinds(folder: str | os.PathLike | None = None) -> list[str]:
    """The corruptions whose CIFAR-10-C files you have; none without the labels.

    >>> cifar10c_kinds("/an/empty/folder")
    []
    """
    names = {path.stem for path in (data_folder(folder) / CIFAR10C).glob("*.npy")}
    kinds = {file: kind for kind, file in CIFAR10C_FILES.items()}
    return sorted(kinds.get(name, name) for name in names - {"labels"} if "labels" in names)


def shipped_folder() -> Path:
    """The folder of the data that ships: inside an installed package, else the checkout's."""
    inside = Path(__file__).parent / "shipped"
    return inside if inside.is_dir() else Path(__file__).parents[2] / "data"


def read_idx(path: Path) -> np.ndarray:
    """Read an IDX file of unsigned bytes, compressed if its name ends in ``.gz``.

    Raises ValueError when the file is not one, or does not hold what its header announces.
    """
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path} is not a whole gzip file: {error}") from error
    rank = data[3] if len(data) > 3 else 0
    start = 4 + 4 * rank
    if data[:3] != b"\0\0\x08" or rank == 0 or len(data) < start:
        raise ValueError(f"{path} is not an IDX file of unsigned bytes: starts with {data[:4]!r}")
    shape = tuple(np.frombuffer(data, ">u4", rank, offset=4).tolist())
    if len(data) - start != math.prod(shape):
        raise ValueError(
            f"{path} announces {shape}, {math.prod(shape):,} bytes, but holds {len(data) - start:,}"
        )
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape)


def read_cifar_batch(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Read a CIFAR-10 binary batch: images (N, 3, 32, 32) uint8 and labels (N,) uint8.

    Raises ValueError when the size is not that of whole images or a label is over 9.
    """
    data = np.fromfile(path, np.uint8)
    if data.size == 0 or data.size % 3073:
        raise ValueError(
            f"{path} has {data.size:,} bytes, expected a positive multiple of 3,073 "
            "(a label and 3x32x32 pixels an image)"
        )
    rows = data.reshape(-1, 3073)
    if rows[:, 0].max() > 9:
        raise ValueError(f"{path} holds the label {rows[:, 0].max()}, expected 0 to 9")
    return rows[:, 1:].reshape(-1, 3, 32, 32), rows[:, 0]


def read_severity(path: Path, severity: int, each: tuple[int, ...] = ()) -> np.ndarray:
    """Read one severity of a CIFAR-10-C file: (5 N, *each) uint8, the severities one after another.

    Raises FetchError when the file is not there, ValueError when it is not of that form.
    """
    try:
        array = np.lib.format.open_memmap(path, mode="r")  # never unpickles
    except FileNotFoundError as error:
        raise FetchError(
            f"{path} is missing: `pilcro fetch` does not bring CIFAR-10-C, unpack the authors' "
            f"archive in {path.parents[1]}"
        ) from error
    except ValueError as error:
        raise ValueError(f"{path} is not a whole .npy file: {error}") from error
    count = array.size // math.prod(each)
    if array.dtype != np.uint8 or array.shape != (count, *each) or count == 0 or count % 5:
        form = ", ".join(map(str, ("5 N", *each)))
        raise ValueError(f"{path} must hold uint8 ({form}), got {array.dtype} {array.shape}")
    return np.split(array, 5)[severity - 1]


def _read_idx_pair(folder: Path, part: str, ending: str = "") -> tuple[Tensor, Tensor]:
    """The images and the labels of one part, in the names that Fashion-MNIST gives them."""
    return _as_tensors(
        read_idx(folder / f"{part}-images-idx3-ubyte{ending}")[:, None],
        read_idx(folder / f"{part}-labels-idx1-ubyte{ending}"),
    )


def _fetched(name: str, folder: str | os.PathLike | None) -> Path:
    if not is_fetched(name, folder):
        raise FetchError(
            f"{name} is not (or not wholly) in {data_folder(folder)}: "
            f"run `pilcro fetch {name}` first"
        )
    return data_folder(folder) / name


def _as_tensors(images: np.ndarray, labels: np.ndarray) -> tuple[Tensor, Tensor]:
    if len(images) != len(labels):
        raise ValueError(f"{len(images)} images, but {len(labels)} labels")
    pixels = torch.from_numpy(images.astype(np.float32)).div_(255)
    return pixels, torch.from_numpy(labels.astype(np.int64))
