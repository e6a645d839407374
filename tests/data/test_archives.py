"""Opening archives: what is taken, what is refused, and that nothing lands elsewhere."""

import gzip
import io
import json
import shutil
import tarfile

import numpy as np
import pytest
from PIL import Image

from pilcro.data.archives import (
    CIFAR10_BATCHES,
    unpack_cifar10_binary,
    unpack_cifar10_png,
    unpack_fashion_mnist_debian,
    unpack_gzip,
)
from pilcro.data.loaders import read_cifar_batch


def regular(name, data):
    member = tarfile.TarInfo(name)
    member.size = len(data)
    return member, data


def link(name, kind, target):
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member, b""


def write_tar(path, members):
    with tarfile.open(path, "w:gz") as tar:
        for member, data in members:
            tar.addfile(member, io.BytesIO(data))
    return path


BATCHES = {f"cifar-10-batches-bin/{name}.bin": name.encode() for name in CIFAR10_BATCHES}


@pytest.fixture
def out(tmp_path):
    (tmp_path / "in" / "out").mkdir(parents=True)
    return tmp_path / "in" / "out"


def test_only_the_named_members_are_taken(tmp_path, out):
    hostile = [
        regular("../../evil", b"x"),
        regular(str(tmp_path / "absolute"), b"x"),
        regular("cifar-10-batches-bin/../../../evil.bin", b"x"),
        regular("cifar-10-batches-bin/readme.html", b"x"),
        link("cifar-10-batches-bin/link", tarfile.SYMTYPE, "/etc/passwd"),
    ]
    good = [regular(f"./{name}", data) for name, data in BATCHES.items()]
    archive = write_tar(tmp_path / "a.tar.gz", hostile + good)
    unpack_cifar10_binary([archive], out)
    assert {p.stem: p.read_bytes() for p in out.iterdir()} == {
        name: name.encode() for name in CIFAR10_BATCHES
    }
    everything = {p.name for p in tmp_path.rglob("*") if p.is_file()}
    assert everything == {"a.tar.gz"} | {f"{name}.bin" for name in CIFAR10_BATCHES}


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE])
def test_a_link_in_place_of_a_file_is_refused(tmp_path, out, kind):
    secret = tmp_path / "secret"
    secret.write_text("not for you")
    members = [link(name, kind, str(secret)) for name in BATCHES]
    archive = write_tar(tmp_path / "a.tar.gz", members)
    with pytest.raises(ValueError, match=r"data_batch_1\.bin' of the archive is not a regular"):
        unpack_cifar10_binary([archive], out)
    assert list(out.iterdir()) == []


def test_missing_members_are_named(tmp_path, out):
    members = [regular(name, data) for name, data in BATCHES.items() if "_3" not in name]
    archive = write_tar(tmp_path / "a.tar.gz", members)
    message = r"the archive lacks cifar-10-batches-bin/data_batch_3\.bin"
    with pytest.raises(ValueError, match=message):
        unpack_cifar10_binary([archive], out)


def test_an_archive_never_writes_over_what_is_there(tmp_path, out):
    (out / "data_batch_1.bin").write_bytes(b"mine")
    archive = write_tar(tmp_path / "a.tar.gz", [regular(*item) for item in BATCHES.items()])
    with pytest.raises(FileExistsError):
        unpack_cifar10_binary([archive], out)
    assert (out / "data_batch_1.bin").read_bytes() == b"mine"


@pytest.mark.parametrize("part", [0, 0.1, 0.5, 0.9])
def test_truncated_tar(tmp_path, out, part):
    whole = write_tar(tmp_path / "a.tar.gz", [regular(*item) for item in BATCHES.items()])
    archive = tmp_path / "b.tar.gz"
    archive.write_bytes(whole.read_bytes()[: int(part * whole.stat().st_size)])
    with pytest.raises((tarfile.TarError, EOFError)):
        unpack_cifar10_binary([archive], out)


def test_gzip(tmp_path, out):
    archives = [tmp_path / "a.gz", tmp_path / "b.gz"]
    for archive in archives:
        archive.write_bytes(gzip.compress(archive.name.encode()))
    unpack_gzip(archives, out)
    assert (out / "a").read_bytes() == b"a.gz"
    assert (out / "b").read_bytes() == b"b.gz"


def png_package(path, images, labels):
    """The layout of the npm package: images (6, rows, 3, 32, 32), labels (6, rows)."""
    members = [regular("package/package.json", b"{}")]
    for name, batch in zip(CIFAR10_BATCHES, images, strict=True):
        file = io.BytesIO()
        Image.fromarray(batch.reshape(len(batch), 3, 1024).transpose(0, 2, 1)).save(file, "png")
        members.append(regular(f"package/{name}.png", file.getvalue()))
    for part, values in (("train", labels[:5]), ("test", labels[5:])):
        text = json.dumps(values.ravel().tolist()).encode()
        members.append(regular(f"package/{part}_lables.json", text))
    return write_tar(path, members)


@pytest.fixture
def images_and_labels():
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (6, 4, 3, 32, 32), np.uint8), rng.integers(0, 10, (6, 4))


def test_png_rows_become_the_authors_batches(tmp_path, out, images_and_labels):
    images, labels = images_and_labels
    unpack_cifar10_png([png_package(tmp_path / "a.tgz", images, labels)], out)
    for index, name in enumerate(CIFAR10_BATCHES):
        got_images, got_labels = read_cifar_batch(out / f"{name}.bin")
        np.testing.assert_array_equal(got_images, images[index])
        np.testing.assert_array_equal(got_labels, labels[index])


def test_png_package_with_too_few_labels(tmp_path, out, images_and_labels):
    images, labels = images_and_labels
    archive = png_package(tmp_path / "a.tgz", images, labels[:, :3])
    with pytest.raises(ValueError, match="dimension"):
        unpack_cifar10_png([archive], out)


def test_debian_package_without_dpkg(tmp_path, out, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="no dpkg-deb on this machine"):
        unpack_fashion_mnist_debian([tmp_path / "a.deb"], out)


@pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="dpkg-deb is part of Debian")
def test_debian_package_that_is_none(tmp_path, out):
    (tmp_path / "a.deb").write_bytes(b"!<arch>\nnonsense")
    with pytest.raises(ValueError, match=r"a\.deb"):
        unpack_fashion_mnist_debian([tmp_path / "a.deb"], out)
    assert list(out.iterdir()) == []
