"""Every notebook for Colab runs from top to bottom where there is nothing but what Colab ships.

The first cell runs as it stands: where it asks for the repository, git answers with the files here.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from colab import derive
from myst import ROOT, read_book
from nbclient import NotebookClient

pytestmark = pytest.mark.skipif(
    os.environ.get("PILCRO_TEST_COLAB") != "1",
    reason="make colab-test; it takes a quarter of an hour",
)
SHIPPED = ("torch", "torchvision", "numpy", "pandas", "matplotlib", "ipykernel")
OLD = "ipywidgets==7.7.1"  # Colab's, and it has no Stack
SOURCES = ("pilcro", "data", "pyproject.toml", "README.md", "LICENSE")
PATHS = sorted((ROOT / "book").glob("*.ipynb"))


def run(*command: str | Path, cwd: Path = ROOT) -> None:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"


@pytest.fixture(scope="module")
def repository(tmp_path_factory) -> Path:
    """What of the working tree the wheel is built from, committed."""
    folder = tmp_path_factory.mktemp("repository")
    for name in SOURCES:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, folder / name)
    run("git", "init", "-q", cwd=folder)
    run("git", "add", "--all", cwd=folder)
    run("git", "-c", "user.name=x", "-c", "user.email=x", "commit", "-qm", "x", cwd=folder)
    return folder


@pytest.fixture(scope="module")
def colab(repository, tmp_path_factory) -> Path:
    """An environment like Colab's, for the kernels that start while this module runs."""
    folder = tmp_path_factory.mktemp("colab")
    pins = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    shipped = [pin for pin in pins if pin.split("==")[0] in SHIPPED]
    assert len(shipped) >= len(SHIPPED)
    run(sys.executable, "-m", "venv", folder)
    python = folder / "bin" / "python"
    run(python, "-m", "pip", "install", "-q", *shipped, OLD)
    run(python, "-m", "ipykernel", "install", "--prefix", folder, "--name", "colab")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JUPYTER_PATH", str(folder / "share" / "jupyter"))
        patch.setenv("GIT_CONFIG_COUNT", "1")
        patch.setenv("GIT_CONFIG_KEY_0", f"url.file://{repository}.insteadOf")
        patch.setenv("GIT_CONFIG_VALUE_0", read_book(ROOT).repository)
        yield folder
    shutil.rmtree(folder)


@pytest.mark.usefixtures("colab")
@pytest.mark.parametrize("path", PATHS, ids=[path.stem for path in PATHS])
def test_runs(path, tmp_path):
    notebook = derive(nbformat.read(path, as_version=4), read_book(ROOT), f"book/{path.stem}")
    where = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(notebook, timeout=300, kernel_name="colab", resources=where).execute()
