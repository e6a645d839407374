"""The command line: what it prints and draws, and one clear line for every mistake."""

import sys

import pytest
import torch

from pilcro import cli
from pilcro.second_moments import RULES


def run(*args):
    cli.main(list(args))


def fails(capsys, *args):
    """What ends up on stderr when the command exits with an error."""
    with pytest.raises(SystemExit) as stopped:
        run(*args)
    assert stopped.value.code not in (0, None)
    return (
        str(stopped.value.code) if isinstance(stopped.value.code, str) else capsys.readouterr().err
    )


def test_landscape_prints_the_summary_and_draws(tmp_path, capsys):
    out = tmp_path / "resnet18.png"
    run("landscape", "resnet18", "--image-size", "64", "--out", str(out))
    printed = capsys.readouterr().out
    assert "coverage" in printed
    assert "exact            no" in printed
    assert "bn1: batch norm in train mode" in printed
    assert out.read_bytes().startswith(b"\x89PNG")


def test_landscape_prints_only(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run("landscape", "squeezenet1_1", "--image-size", "64", "--weights", "drawn")
    assert "centre_bias" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_an_operation_without_a_rule_is_named(capsys, monkeypatch):
    monkeypatch.delitem(RULES, torch.nn.functional.dropout)
    message = fails(capsys, "landscape", "alexnet", "--image-size", "64")
    assert message.startswith("pilcro: no second-moment rule for ")
    assert "called in module" in message


def test_models_are_taken_as_training_begins():
    """Batch statistics on, dropout off, the same weights each time."""
    from torch import nn

    one, two = cli.initial("mobilenet_v3_small"), cli.initial("mobilenet_v3_small")
    kinds = (nn.BatchNorm2d, nn.Dropout)
    assert {type(m): m.training for m in one.modules() if isinstance(m, kinds)} == {
        nn.BatchNorm2d: True,
        nn.Dropout: False,
    }
    assert all(map(torch.equal, one.parameters(), two.parameters()))


def test_weights_reach_the_closed_form(monkeypatch):
    import pilcro

    asked = []
    closed_form = pilcro.closed_form
    monkeypatch.setattr(
        pilcro, "closed_form", lambda *a, **k: asked.append(k["weights"]) or closed_form(*a, **k)
    )
    run("landscape", "squeezenet1_1", "--image-size", "64", "--weights", "drawn")
    assert asked == ["drawn"]


def test_an_unknown_model(capsys):
    message = fails(capsys, "landscape", "resnet81", "--image-size", "64")
    assert message.startswith("pilcro: no torchvision model 'resnet81'; did you mean resnet")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--image-size", "0"), "image_size must be at least 1, got 0"),
        (("--image-size", "8", "--channels", "1"), "expected 3 channels, got 1"),
        (("--image-size", "64", "--out", "x.doc"), "out must end in one of"),
        (("--image-size", "64", "--out", "no/such/x.png"), "a folder that does not exist"),
        (("--image-size", "many"), "many"),
        ((), "image-size"),
    ],
)
def test_mistakes(options, message, capsys):
    assert message in fails(capsys, "landscape", "resnet18", *options)


def test_an_unwritable_picture(tmp_path, capsys):
    out = tmp_path / "folder.png"
    out.mkdir()
    assert "out cannot be written" in fails(
        capsys, "landscape", "squeezenet1_1", "--image-size", "64", "--out", str(out)
    )


def test_fetch_calls_the_data_package(monkeypatch, capsys, tmp_path):
    from pilcro import data

    asked = []
    monkeypatch.setattr(data, "fetch", lambda name: asked.append(name) or tmp_path / name)
    run("fetch", "cifar10")
    assert asked == ["cifar10"]
    assert capsys.readouterr().out == f"cifar10: {tmp_path / 'cifar10'}\n"
    run("fetch", "--all")
    assert asked[1:] == list(data.DATASETS)


def test_fetch_needs_a_name(capsys):
    assert "name the data sets or say --all; known: " in fails(capsys, "fetch")
    assert "name the data sets or say --all" in fails(capsys, "fetch", "cifar10", "--all")


def test_fetch_of_an_unknown_set(capsys):
    assert "cifar10" in fails(capsys, "fetch", "cifar11")


def test_ctrl_c(monkeypatch, capsys):
    from pilcro import data

    def interrupted(name):
        raise KeyboardInterrupt

    monkeypatch.setattr(data, "fetch", interrupted)
    assert fails(capsys, "fetch", "cifar10") == "pilcro: interrupted"


def test_without_tyro(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "tyro", None)
    assert "pip install 'pilcro[experiments]'" in fails(capsys, "fetch", "cifar10")
