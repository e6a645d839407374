"""One run by several processes, started as the book says it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from processes import needs_gloo

from pilcro.experiments.config import Run
from pilcro.experiments.train import train

pytestmark = needs_gloo


def torchrun(*options):
    programs = Path(sys.executable).parent
    command = [programs / "torchrun", "--standalone", "--nproc-per-node", "2", programs / "pilcro"]
    return subprocess.run(
        [*command, "train", "--images", "100", "--epochs", "2", *options],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )


def test_two_processes_share_each_batch(tmp_path):
    out = tmp_path / "runs.jsonl"
    done = torchrun("--batch", "20", "--out", out)
    assert done.returncode == 0, done.stderr
    (record,) = map(json.loads, out.read_text().splitlines())
    assert json.loads(done.stdout) == record["metrics"]  # one of them prints
    alone = train(Run(images=100, epochs=2, batch=20))
    assert record["key"] == alone["key"]
    assert record["curves"]["loss"] == pytest.approx(alone["curves"]["loss"], rel=1e-3)
    assert record["curves"]["loss"][1] != record["curves"]["loss"][0]


def test_a_batch_that_two_cannot_share(tmp_path):
    done = torchrun("--batch", "25", "--out", tmp_path / "runs.jsonl")
    assert done.returncode != 0
    assert "pilcro: 2 processes cannot share a batch of 25 evenly" in done.stderr
    assert not list(tmp_path.iterdir())
