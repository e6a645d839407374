"""Results survive many writers, kills and full disks; what is corrupt is named."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timezone
from io import FileIO

import pandas
import pytest
import torch

from pilcro.experiments import results

# A process that appends for ever, and says after each line that it is on the disk.
WRITER = """
import sys
from pilcro.experiments import results
path, name = sys.argv[1:]
number = 0
while True:
    record = dict.fromkeys(results.KEYS) | {"network": name, "seed": number, "metrics": "x" * 20000}
    results.append(path, record)
    print(number, flush=True)
    number += 1
"""


def record(seed=0, **more):
    return dict.fromkeys(results.KEYS) | {"seed": seed} | more


def seeds(path):
    return [run["seed"] for run in results.read(path)]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "new" / "runs.jsonl"


def test_what_is_written_is_read(path):
    runs = [record(seed, metrics={"loss": 1e-300, "text": "¶\n"}, note=seed) for seed in range(3)]
    for run in runs:
        results.append(path, run)
    assert results.read(path) == runs
    assert len(path.read_bytes().splitlines()) == 3


def test_a_table(path):
    for seed in range(2):
        results.append(path, record(seed, metrics={"accuracy": 0.5 + seed / 4}))
    table = pandas.json_normalize(results.read(path))
    assert table["metrics.accuracy"].tolist() == [0.5, 0.75]


def test_killed_writers_lose_nothing_that_they_announced(path):
    """Three processes write the same file and are killed in the middle of it."""
    names = ["a", "b", "c"]
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, path, name], stdout=subprocess.PIPE)
        for name in names
    ]
    # read what they say until each has said enough, then kill them where they are
    for writer in writers:
        for _ in range(10):
            assert writer.stdout.readline()
    for writer in writers:
        writer.send_signal(signal.SIGKILL)
    said = [10 + len(writer.communicate()[0].split()) for writer in writers]
    if not path.read_bytes().endswith(b"\n"):
        with pytest.warns(UserWarning, match="torn last line"):
            results.append(path, record(network="after"))
    else:
        results.append(path, record(network="after"))
    runs = results.read(path)
    assert runs[-1]["network"] == "after"
    for name, count in zip(names, said, strict=True):
        found = [run["seed"] for run in runs if run["network"] == name]
        assert found == list(range(len(found)))
        assert len(found) in (count, count + 1)  # a line may be written and not yet announced


def test_many_threads(path):
    start = threading.Barrier(8)

    def write(seed):
        start.wait()
        for _ in range(10):
            results.append(path, record(seed, metrics="y" * 5000))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(8)))
    assert sorted(seeds(path)) == sorted(list(range(8)) * 10)


@pytest.mark.parametrize("before", [0, 2])
@pytest.mark.parametrize("cut", [1, 10, -2])
def test_a_torn_last_line_is_left_out_and_removed(path, before, cut):
    for seed in range(before + 1):
        results.append(path, record(seed))
    *whole, last = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(whole) + last[:cut])
    with pytest.warns(UserWarning, match=rf"left out a torn last line of {len(last[:cut])} bytes"):
        assert seeds(path) == list(range(before))
    with pytest.warns(UserWarning, match=rf"removed a torn last line of {len(last[:cut])} bytes"):
        results.append(path, record(9))
    assert seeds(path) == [*range(before), 9]


def test_a_line_that_lacks_only_its_end_is_kept(path):
    results.append(path, record(0))
    path.write_bytes(path.read_bytes().removesuffix(b"\n"))
    assert seeds(path) == [0]
    results.append(path, record(1))
    assert seeds(path) == [0, 1]


def test_a_full_disk_is_said_and_mended(path, monkeypatch):
    results.append(path, record(0))

    class Full(FileIO):
        def write(self, data):
            return super().write(data[: len(data) // 2])

    with monkeypatch.context() as patch:
        patch.setattr(results, "open", lambda path, *_, **__: Full(path, "a+"), raising=False)
        with pytest.raises(OSError, match="only a part of the line could be written"):
            results.append(path, record(1))
    with pytest.warns(UserWarning, match="torn last line"):
        results.append(path, record(2))
    assert seeds(path) == [0, 2]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"seed": 1', "line 2, is not JSON"),
        (b"", "line 2, is not JSON"),
        (b"\xff", "line 2, is not JSON"),
        (b"[]", "line 2, lacks experiment, dataset"),
        (json.dumps({k: 0 for k in results.KEYS if k != "metrics"}).encode(), "lacks metrics$"),
    ],
)
def test_a_corrupt_line_is_named(path, line, message):
    results.append(path, record(0))
    path.write_bytes(path.read_bytes() + line + b"\n")
    results.append(path, record(2))
    with pytest.raises(ValueError, match=re.escape(str(path)) + ", .*" + message):
        results.read(path)


@pytest.mark.parametrize(
    ("run", "error", "message"),
    [
        ({"seed": 1}, ValueError, "lacks experiment, dataset, network"),
        (record(metrics={"loss": float("nan")}), ValueError, "write None"),
        (record(metrics={"loss": -float("inf")}), ValueError, "write None"),
        (record(metrics={1, 2}), TypeError, "set is not JSON"),
    ],
)
def test_a_bad_record_writes_nothing(path, run, error, message):
    with pytest.raises(error, match=message):
        results.append(path, run)
    assert not path.exists()


def test_a_missing_file(path):
    with pytest.raises(FileNotFoundError, match=r"runs\.jsonl"):
        results.read(path)


def test_without_filelock(path, monkeypatch):
    monkeypatch.setitem(sys.modules, "filelock", None)
    with pytest.raises(ImportError, match=r"pip install 'pilcro\[experiments\]'"):
        results.append(path, record())


def test_provenance_is_json_and_now():
    code = "import json; from pilcro.experiments import results; "
    code += "print(json.dumps(results.provenance()))"
    command = [sys.executable, "-c", code, "an argument"]
    before = datetime.now(timezone.utc).replace(microsecond=0)
    found = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    assert before <= datetime.fromisoformat(found["time"]) <= datetime.now(timezone.utc)
    assert torch.__version__.startswith(found["torch"].partition("+")[0])
    assert found["threads"] >= 1
    assert found["cpu"]
    assert found["command"].startswith("python")
    assert found["command"].endswith(" 'an argument'")


def test_provenance_knows_the_revision(tmp_path, monkeypatch):
    """In a checkout of pilcro: its commit, and whether the code differs from it."""

    def git(*command):
        who = ["-c", "user.name=n", "-c", "user.email=e"]
        subprocess.run(["git", "-C", tmp_path, *who, *command], check=True, capture_output=True)

    monkeypatch.setattr(results, "SOURCE", tmp_path)
    assert results.provenance()["revision"] is None
    git("init")
    (tmp_path / "pilcro").mkdir()
    (tmp_path / "pilcro" / "__init__.py").write_text("")
    # a package that lies in somebody else's checkout has no revision of its own
    assert results.provenance()["revision"] is results.provenance()["modified"] is None
    git("add", ".")
    git("commit", "-m", "one")
    (tmp_path / "results.jsonl").write_text("not code")
    found = results.provenance()
    assert re.fullmatch("[0-9a-f]{40}", found["revision"])
    assert found["modified"] is False
    (tmp_path / "pilcro" / "new.py").write_text("")
    assert results.provenance()["modified"] is True


def test_provenance_without_git(monkeypatch):
    monkeypatch.setenv("PATH", os.devnull)
    assert results.provenance()["revision"] is None


def test_import_pilcro_does_not_import_it():
    code = "import sys, pilcro; assert not [m for m in sys.modules if 'experiments' in m]"
    subprocess.run([sys.executable, "-c", code], check=True)
