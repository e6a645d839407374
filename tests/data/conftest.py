"""A web server of the test's own, and data sets small enough to fetch from it."""

import threading

import pytest
from bad_server import Server, sha256

from pilcro.data import DATASETS, DataSet, sources
from pilcro.data.registry import File


@pytest.fixture(autouse=True)
def impatient(monkeypatch, tmp_path):
    """Failures are final at once, and no test sees the user's own cache."""
    monkeypatch.setattr(sources, "RETRIES", 0)
    monkeypatch.setenv("PILCRO_DATA", str(tmp_path / "default-folder"))


@pytest.fixture
def server():
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.closing.set()
        server.shutdown()
        thread.join()


@pytest.fixture
def register(monkeypatch):
    """Put a data set of the given contents and sources into the table, for one test."""

    def register(contents, *sources, name="fake"):
        dataset = DataSet(
            name=name,
            description="made up",
            files=tuple(File(file, len(data), sha256(data)) for file, data in contents.items()),
            sources=sources,
            classes=(),
            licence="none",
            citation="none",
            url="https://example.org/fake",
        )
        monkeypatch.setitem(DATASETS, name, dataset)
        return dataset

    return register
