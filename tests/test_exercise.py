"""The check of an exercise: polite for every answer, right only for the right one."""

import matplotlib.pyplot as plt
import pytest
import torch

from pilcro.exercise import check


@pytest.mark.parametrize(
    ("got", "expected", "said"),
    [
        (None, 1.0, "not yet: the answer is still None"),
        ("three", 3.0, "not yet: expected numbers, got 'three'"),
        (object, 3.0, "not yet: expected numbers"),
        ([1.0, 2.0], 3.0, "not yet: expected shape (), got (2,)"),
        (3.1, 3.0, "not yet: expected 3.0, got 3.1"),
        (float("nan"), 3.0, "not yet: expected 3.0, got nan"),
        ([1.0, 2.0], torch.tensor([1.0, 3.0]), "not yet: expected [1.0, 3.0], got [1.0, 2.0]"),
    ],
)
def test_not_yet(got, expected, said, capsys):
    assert check(got, expected) is False
    assert capsys.readouterr().out.startswith(said)


def test_many_numbers_are_not_printed(capsys):
    wrong = torch.arange(20_000.0)
    wrong[7] = -1
    assert not check(wrong, torch.arange(20_000.0), rtol=1e-6)
    said = "not yet: of 20000 numbers number 7 is furthest off: expected 7.0, got -1.0\n"
    assert capsys.readouterr().out == said


@pytest.mark.parametrize("got", [3, 3.0, 3.0001, torch.tensor(3.0, requires_grad=True)])
def test_right(got, capsys):
    assert check(got, 3.0) is True
    assert capsys.readouterr().out == "right\n"


def test_a_wrong_map_is_drawn_beside_the_expected_one(capsys, monkeypatch):
    shown = []
    monkeypatch.setattr(plt, "show", lambda: shown.append(plt.gcf()))
    assert not check(torch.zeros(3, 4), torch.ones(3, 4))
    said = "here is what was expected (mean 1.0) and what you got (mean 0.0)"
    assert said in capsys.readouterr().out
    titles = [ax.get_title() for ax in shown[0].axes[:2]]
    assert titles == ["expected", "got"]
