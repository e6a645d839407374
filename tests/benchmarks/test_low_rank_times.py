"""The benchmark of the low-rank layer compares like with like; the times are made up."""

import importlib
import time

import pytest
import torch
import torch.nn.functional as F

GEOMETRY = (3, 4, 6, 2, 2)  # channels, filters, size, batch, rank


@pytest.fixture
def script():
    return importlib.import_module("low_rank")


def test_all_sides_convolve_with_as_many_channels(script):
    layers = {side: script.build(side, 3, 4, 6, 2) for side in (*script.SIDES, "local")}
    for side in script.SIDES:
        assert layers[side].weight.shape == (8, 3, 3, 3)
        assert layers[side].bias is None
    outputs = {side: script.step(side, *GEOMETRY, False)() for side in script.SIDES}
    assert outputs["convolution"].shape == (2, 8, 6, 6)
    assert outputs["floor"].shape == outputs["low rank"].shape == (2, 4, 6, 6)
    assert layers["local"](torch.zeros(2, 3, 8, 8)).shape == (2, 4, 6, 6)


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("channels", [3, 5])
def test_a_pass_goes_back_only_if_asked(script, monkeypatch, train, channels):
    made = []
    build = script.build
    monkeypatch.setattr(script, "build", lambda *args: made.append(build(*args)) or made[-1])
    monkeypatch.setattr(torch, "randn", lambda *shape, generator: torch.ones(*shape))
    for side in script.SIDES:
        out = script.step(side, channels, *GEOMETRY[1:], train)()
        assert out.requires_grad == train
        assert (made[-1].weight.grad is not None) == train
    if train:  # all sides get a gradient of ones: that of the plain convolution is known
        x = torch.ones(2, channels, 8, 8)
        want = torch.autograd.grad(F.conv2d(x, made[0].weight).sum(), made[0].weight)[0]
        torch.testing.assert_close(made[0].weight.grad, want)
        torch.testing.assert_close(made[1].weight.grad, want)
        torch.testing.assert_close(made[2].weight.grad, want / 2)  # the mean of two banks


def test_a_line_for_each_rank(script, monkeypatch, capsys):
    took = {"convolution": 2.0, "floor": 2.2, "low rank": 2.4}

    def in_turns(sides, clock):
        assert clock is time.process_time
        for run in sides.values():
            run()
        return {side: [took[side]] * 3 for side in sides}

    used = {"convolution": 2**20, "low rank": 2**21, "local": 2**23}
    monkeypatch.setattr(script, "in_turns", in_turns)
    monkeypatch.setattr(script, "peak_memory", lambda side, *geometry: used[side])
    script.main((3, 4), filters=2, size=4, batch=1)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()[2:]]
    assert [line[:2] for line in lines] == [[c, str(r)] for c in "34" for r in script.RANKS]
    assert lines[0][2:] == ["2400.0", "1.2", "1.1", "2400.0", "1.2", "1.1", "1", "2", "8"]


def test_memory_is_that_of_a_new_process(script):
    """A batch of 64 images makes 2 banks of 2 MiB each, which are there at the same time."""
    assert script.peak_memory("low rank", 3, 64, 14, 40, 2) > 2 * 40 * 64 * 14**2 * 4
