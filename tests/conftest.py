"""The tests check shapes at run time: jaxtyping with beartype, on every function of pilcro."""

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
