"""fetch: what is left on the disk and said to the user, whatever happens on the way."""

import gzip
import os
import random
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from bad_server import cut_in_the_middle, drips, falls_silent, in_turn, sha256, whole

from pilcro.data import DATASETS, FetchError, data_folder, fetch, is_fetched, sources
from pilcro.data.archives import unpack_gzip
from pilcro.data.sources import UrlSource

NUMBERS = random.Random(0).randbytes(100_000)
ARCHIVE = gzip.compress(NUMBERS, mtime=0)


def source(server, page, path="/numbers.gz"):
    return UrlSource({server.serve(path, page): f"sha256:{sha256(ARCHIVE)}"}, unpack_gzip)


def dead_source():
    return UrlSource({"http://127.0.0.1:9/numbers.gz": f"sha256:{sha256(ARCHIVE)}"}, unpack_gzip)


def content(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.name != ".fake.lock")


def test_fetch_writes_the_verified_file_and_nothing_else(server, register, tmp_path):
    register({"numbers": NUMBERS}, source(server, whole(ARCHIVE)))
    assert not is_fetched("fake", tmp_path)
    assert fetch("fake", tmp_path, progress=False) == tmp_path / "fake"
    assert is_fetched("fake", tmp_path)
    assert content(tmp_path) == ["fake", "fake/numbers"]
    assert (tmp_path / "fake" / "numbers").read_bytes() == NUMBERS


def test_a_fetched_set_is_verified_and_left_alone(server, register, tmp_path, monkeypatch):
    register({"numbers": NUMBERS}, source(server, whole(ARCHIVE)))
    path = fetch("fake", tmp_path, progress=False) / "numbers"
    before = path.stat()
    monkeypatch.setitem(sys.modules, "pooch", None)  # not needed for it either
    fetch("fake", tmp_path)
    assert path.stat() == before
    assert server.hits["/numbers.gz"] == 1


def test_progress_is_shown_only_when_asked_for(server, register, tmp_path, capfd):
    register({"numbers": NUMBERS}, dead_source(), source(server, whole(ARCHIVE)))
    fetch("fake", tmp_path / "quiet", progress=False)
    assert capfd.readouterr() == ("", "")
    fetch("fake", tmp_path / "loud")
    out, err = capfd.readouterr()
    assert out == ""
    assert "fake: 127.0.0.1:9: ConnectionError: " in err


def test_progress_bar_of_a_download_that_takes_a_while(server, register, tmp_path, capfd):
    register({"numbers": NUMBERS}, source(server, drips(ARCHIVE)))
    fetch("fake", tmp_path)
    err = capfd.readouterr().err
    assert "numbers.gz:" in err
    assert "kB/s]" in err
    assert f"fake: verified, from 127.0.0.1:{server.server_port}, now in {tmp_path}/fake\n" in err


@pytest.mark.parametrize(
    ("page", "reason"),
    [
        (cut_in_the_middle(ARCHIVE), "IncompleteRead"),
        (whole(ARCHIVE[:5000]), "does not match the known hash"),
        (whole(b"<html>Sign in to the network of this hotel</html>"), "does not match"),
        (None, "404"),
    ],
)
def test_a_bad_download_leaves_nothing(server, register, tmp_path, page, reason):
    register({"numbers": NUMBERS}, source(server, page))
    with pytest.raises(FetchError, match=reason):
        fetch("fake", tmp_path, progress=False)
    assert content(tmp_path) == []
    assert not is_fetched("fake", tmp_path)


def test_files_are_verified_even_when_the_archive_is_the_right_one(server, register, tmp_path):
    register({"numbers": NUMBERS[:-1] + b"?"}, source(server, whole(ARCHIVE)))
    with pytest.raises(FetchError, match=f"numbers has sha256 {sha256(NUMBERS)}, expected"):
        fetch("fake", tmp_path, progress=False)
    assert content(tmp_path) == []


def test_retry_then_success(server, register, tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "RETRIES", 1)
    register(
        {"numbers": NUMBERS}, source(server, in_turn(cut_in_the_middle(ARCHIVE), whole(ARCHIVE)))
    )
    fetch("fake", tmp_path, progress=False)
    assert server.hits["/numbers.gz"] == 2
    assert is_fetched("fake", tmp_path)


def test_second_source_works_when_the_first_is_dead(server, register, tmp_path):
    register({"numbers": NUMBERS}, dead_source(), source(server, whole(ARCHIVE)))
    fetch("fake", tmp_path, progress=False)
    assert is_fetched("fake", tmp_path)


def test_a_host_that_falls_silent_has_its_time(server, register, tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "READ_TIMEOUT", 3)
    register(
        {"numbers": NUMBERS},
        source(server, falls_silent(ARCHIVE), "/silent/numbers.gz"),
        source(server, whole(ARCHIVE)),
    )
    fetch("fake", tmp_path, progress=False)
    assert server.hits == {"/silent/numbers.gz": 1, "/numbers.gz": 1}


def test_a_host_that_is_too_slow_has_its_time(server, register, tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "GRACE", 0.3)
    url = server.serve("/slow/numbers.gz", drips(ARCHIVE))
    slow = UrlSource({url: f"sha256:{sha256(ARCHIVE)}"}, unpack_gzip, minimum_speed=10_000_000)
    register({"numbers": NUMBERS}, slow)
    with pytest.raises(FetchError, match=r"TimeoutError: too slow: \d+ kB/s, under 10000 kB/s"):
        fetch("fake", tmp_path, progress=False)
    assert content(tmp_path) == []


def test_when_nothing_works_the_message_lists_the_sources_and_the_place(register, tmp_path):
    register({"numbers": NUMBERS}, dead_source(), dead_source())
    with pytest.raises(FetchError) as caught:
        fetch("fake", tmp_path, progress=False)
    lines = str(caught.value).splitlines()
    assert lines[0] == "fake could not be fetched. Tried:"
    for line in lines[1:3]:
        assert line.startswith("  - 127.0.0.1:9: ConnectionError: ")
        assert "refused" in line
    assert lines[3:] == [
        f"By hand: put one of these into {tmp_path / 'by-hand' / 'fake'}",
        "  - numbers",
        "  - numbers.gz",
        "(see https://example.org/fake), then run `pilcro fetch fake` again.",
    ]


@pytest.mark.parametrize(("file", "data"), [("numbers", NUMBERS), ("numbers.gz", ARCHIVE)])
def test_what_was_put_by_hand_is_taken_and_kept(register, tmp_path, file, data):
    register({"numbers": NUMBERS}, dead_source())
    place = tmp_path / "by-hand" / "fake"
    place.mkdir(parents=True)
    (place / file).write_bytes(data)
    fetch("fake", tmp_path, progress=False)
    assert (tmp_path / "fake" / "numbers").read_bytes() == NUMBERS
    assert (place / file).read_bytes() == data


@pytest.mark.parametrize(
    ("file", "data", "reason"),
    [
        ("numbers", NUMBERS[:-1], "by hand: ValueError: numbers has 99,999 bytes"),
        ("numbers.gz", ARCHIVE[:-1], r"by hand, numbers\.gz: ValueError: numbers\.gz has sha256"),
    ],
)
def test_what_was_put_by_hand_is_verified(register, tmp_path, file, data, reason):
    register({"numbers": NUMBERS}, dead_source())
    place = tmp_path / "by-hand" / "fake"
    place.mkdir(parents=True)
    (place / file).write_bytes(data)
    with pytest.raises(FetchError, match=reason):
        fetch("fake", tmp_path, progress=False)
    assert not (tmp_path / "fake").exists()


def test_a_part_put_by_hand_names_what_is_missing(register, tmp_path):
    urls = {f"http://127.0.0.1:9/{name}.gz": f"sha256:{sha256(ARCHIVE)}" for name in "ab"}
    register({"a": NUMBERS, "b": NUMBERS}, UrlSource(urls, unpack_gzip))
    place = tmp_path / "by-hand" / "fake"
    place.mkdir(parents=True)
    (place / "a.gz").write_bytes(ARCHIVE)
    with pytest.raises(FetchError, match=rf"there is no b\.gz in {place}"):
        fetch("fake", tmp_path, progress=False)


@pytest.mark.parametrize(
    ("wrong", "fault"),
    [(NUMBERS[:500], "numbers has 500 bytes, expected 100,000"), (NUMBERS[::-1], "has sha256")],
)
def test_wrong_content_is_moved_aside_and_replaced(server, register, tmp_path, wrong, fault):
    register({"numbers": NUMBERS}, source(server, whole(ARCHIVE)))
    for _ in range(2):  # also when something was moved aside before
        path = fetch("fake", tmp_path, progress=False) / "numbers"
        path.write_bytes(wrong)
        with pytest.warns(UserWarning, match=rf"{fault}.*moved to .*fake\.wrong"):
            fetch("fake", tmp_path, progress=False)
        assert path.read_bytes() == NUMBERS
        assert (tmp_path / "fake.wrong" / "numbers").read_bytes() == wrong


def test_wrong_content_does_not_count_while_there_is_nothing_better(register, tmp_path):
    register({"numbers": NUMBERS}, dead_source())
    (tmp_path / "fake").mkdir()
    (tmp_path / "fake" / "numbers").write_bytes(NUMBERS[::-1])
    with pytest.warns(UserWarning, match="moved to"), pytest.raises(FetchError, match="Tried"):
        fetch("fake", tmp_path, progress=False)
    assert not is_fetched("fake", tmp_path)


def test_ctrl_c_while_unpacking_leaves_nothing(server, register, tmp_path):
    def interrupted(archives, folder):
        (folder / "numbers").write_bytes(NUMBERS)
        raise KeyboardInterrupt

    url = server.serve("/numbers.gz", whole(ARCHIVE))
    register({"numbers": NUMBERS}, UrlSource({url: f"sha256:{sha256(ARCHIVE)}"}, interrupted))
    with pytest.raises(KeyboardInterrupt):
        fetch("fake", tmp_path, progress=False)
    assert content(tmp_path) == []


def test_the_set_appears_by_one_rename_of_its_folder(server, register, tmp_path, monkeypatch):
    register({"numbers": NUMBERS}, source(server, whole(ARCHIVE)))
    renamed = []

    def fail(old, new):
        renamed.append((sorted(os.listdir(old)), new))
        raise OSError("the disk is full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(FetchError, match=f"cannot use the data folder {tmp_path}: the disk is"):
        fetch("fake", tmp_path, progress=False)
    assert renamed == [(["numbers"], tmp_path / "fake")]
    assert content(tmp_path) == []


def fetch_in_a_process(url, folder):
    program = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # background shells have it ignored
from pilcro.data import DATASETS, DataSet, fetch
from pilcro.data.archives import unpack_gzip
from pilcro.data.registry import File
from pilcro.data.sources import UrlSource
url, checksum, size, sha256, folder = sys.argv[1:]
DATASETS["fake"] = DataSet(
    "fake", "", (File("numbers", int(size), sha256),), (UrlSource({url: checksum}, unpack_gzip),),
    (), "", "", "",
)
fetch("fake", folder, progress=False)
"""
    arguments = [url, f"sha256:{sha256(ARCHIVE)}", str(len(NUMBERS)), sha256(NUMBERS), str(folder)]
    return subprocess.Popen([sys.executable, "-c", program, *arguments], stderr=subprocess.PIPE)


def wait_until(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.02)


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGKILL"])
def test_a_fetch_stopped_in_the_middle_and_a_clean_one_after(server, register, tmp_path, name):
    url = server.serve("/numbers.gz", in_turn(falls_silent(ARCHIVE), whole(ARCHIVE)))
    process = fetch_in_a_process(url, tmp_path)
    half = len(ARCHIVE) // 2 // 4096 * 4096  # the last chunk never comes
    wait_until(lambda: any(p.stat().st_size >= half for p in tmp_path.rglob("tmp*")))
    process.send_signal(getattr(signal, name))
    process.communicate()
    assert process.returncode != 0
    assert not (tmp_path / "fake").exists()
    left = list(tmp_path.glob(".fake-partial-*"))
    assert bool(left) == (name != "SIGINT")  # Ctrl-C cleans up; a killed process cannot

    register({"numbers": NUMBERS}, source(server, whole(ARCHIVE)))
    fetch("fake", tmp_path, progress=False)
    assert content(tmp_path) == ["fake", "fake/numbers"]


def test_parallel_fetches_download_once(server, tmp_path):
    url = server.serve("/numbers.gz", drips(ARCHIVE))
    processes = [fetch_in_a_process(url, tmp_path) for _ in range(3)]
    for process in processes:
        _, errors = process.communicate()
        assert process.returncode == 0, errors.decode()
    assert server.hits["/numbers.gz"] == 1
    assert content(tmp_path) == ["fake", "fake/numbers"]


def test_parallel_fetches_in_one_process(server, register, tmp_path):
    register({"numbers": NUMBERS}, source(server, drips(ARCHIVE)))
    with ThreadPoolExecutor(3) as pool:
        paths = list(pool.map(lambda _: fetch("fake", tmp_path, progress=False), range(3)))
    assert paths == [tmp_path / "fake"] * 3
    assert server.hits["/numbers.gz"] == 1


def test_unknown_name():
    message = "no data set is called 'mnist'; there are: cifar10, fashion_mnist"
    with pytest.raises(ValueError, match=message):
        fetch("mnist")
    with pytest.raises(ValueError, match=message):
        is_fetched("mnist")


def test_unwritable_folder(register, tmp_path):
    register({"numbers": NUMBERS}, dead_source())
    (tmp_path / "file").touch()
    folder = tmp_path / "file" / "below"
    assert not is_fetched("fake", folder)
    with pytest.raises(FetchError, match=f"cannot use the data folder {folder}: "):
        fetch("fake", folder, progress=False)


@pytest.mark.parametrize("package", ["pooch", "filelock"])
def test_missing_extra(register, tmp_path, monkeypatch, package):
    register({"numbers": NUMBERS}, dead_source())
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(FetchError, match=rf"needs {package}: pip install 'pilcro\[experiments\]'"):
        fetch("fake", tmp_path / "folder", progress=False)
    assert not (tmp_path / "folder").exists()


def test_data_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("PILCRO_DATA", str(tmp_path / "there"))
    assert data_folder() == tmp_path / "there"
    assert data_folder(tmp_path) == tmp_path
    monkeypatch.setenv("PILCRO_DATA", "")  # as good as unset
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert data_folder() == tmp_path / "pilcro"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert data_folder() == tmp_path / ".cache" / "pilcro"
    assert data_folder("~/x") == tmp_path / "x"
    monkeypatch.chdir(tmp_path)
    assert data_folder("relative") == tmp_path / "relative"


def test_the_default_folder_is_used(server, register):
    register({"numbers": NUMBERS}, source(server, whole(ARCHIVE)))
    assert str(fetch("fake", progress=False)) == os.path.join(os.environ["PILCRO_DATA"], "fake")
    assert is_fetched("fake")


def test_the_table_is_consistent():
    for name, dataset in DATASETS.items():
        assert dataset.name == name
        assert len(dataset.classes) == 10
        assert dataset.size == sum(file.size for file in dataset.files)
        assert all(len(file.sha256) == 64 for file in dataset.files)
        assert len(dataset.sources) >= 2
        for text in (dataset.description, dataset.licence, dataset.citation, dataset.url):
            assert text
