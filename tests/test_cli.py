"""The command line: what it prints and draws, and one clear line for every mistake."""

import json
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
    found = {(type(m), m.training) for m in one.modules() if isinstance(m, kinds)}
    assert found == {(nn.BatchNorm2d, True), (nn.Dropout, False)}
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


SMALL = ("--images", "100", "--epochs", "1", "--batch", "50")


def test_train_prints_and_stores(tmp_path, capsys):
    out = tmp_path / "runs.jsonl"
    settings = ("--method.name", "objective", "--method.strength", "0.01", "--seed", "3")
    run("train", *SMALL, *settings, "--out", str(out))
    printed = json.loads(capsys.readouterr().out)
    (record,) = map(json.loads, out.read_text().splitlines())
    assert record["metrics"] == printed
    assert record["config"]["method"]["strength"] == 0.01
    assert record["config"]["seed"] == record["seed"] == 3
    assert record["method"] == "objective log 0.01"
    assert sorted(path.name for path in tmp_path.iterdir()) == [".runs.jsonl.lock", out.name]
    run("train", *SMALL, *settings, "--out", str(out))  # it is there: nothing is added
    assert json.loads(capsys.readouterr().out) == printed
    assert len(out.read_text().splitlines()) == 1


def test_train_only_prints_without_a_file(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run("train", *SMALL)
    assert "validation_accuracy" in json.loads(capsys.readouterr().out)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--images", "105"), "images must be a multiple of 10 and at most 5000"),
        (("--epochs", "0"), "epochs must be at least 1, got 0"),
        (("--evaluate-on", "test"), "must be stored: give out"),
        (("--method.name", "jacobian"), "jacobian needs a strength"),
        (("--method.name", "jacobi"), "jacobian"),
        (("--device", "quantum"), "device 'quantum' cannot be used here"),
    ],
)
def test_mistakes_in_a_run(options, message, capsys):
    assert message in fails(capsys, "train", *options)


def test_results_of_a_file(tmp_path, capsys):
    out = tmp_path / "runs.jsonl"
    run("train", *SMALL, "--evaluate-on", "test", "--out", str(out))
    assert json.loads(out.read_text())["method"] == "none"  # what the others are compared with
    capsys.readouterr()
    run("results", str(out))
    assert "Fashion-MNIST, 100 images, small CNN: accuracy" in capsys.readouterr().out
    assert "no such file" in fails(capsys, "results", str(tmp_path / "other.jsonl"))


def test_sweep_of_something_unknown(tmp_path, capsys):
    message = fails(capsys, "sweep", "labs", "--folder", str(tmp_path))
    assert message.startswith("pilcro: experiment must be one of cifar10_1k_cnn, fashion_cnn")
    message = fails(capsys, "sweep", "lab", "--folder", str(tmp_path), "--methods", "magic")
    assert message.startswith("pilcro: method must be one of none, weight decay")
    assert not list(tmp_path.iterdir())


def test_ctrl_c(monkeypatch, capsys):
    from pilcro import data

    def interrupted(name):
        raise KeyboardInterrupt

    monkeypatch.setattr(data, "fetch", interrupted)
    assert fails(capsys, "fetch", "cifar10") == "pilcro: interrupted"


def test_without_tyro(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "tyro", None)
    assert "pip install 'pilcro[experiments]'" in fails(capsys, "fetch", "cifar10")
