import json
import math

import pytest

from pilcro.experiments.report_card import as_html, report_card


def line(model, size, **metrics):
    config = {"image_size": size, "default_size": 240, "batch_norm": "train", "family": "fam"}
    config["batch_norm"] = metrics.pop("batch_norm", "train")
    keys = dict.fromkeys(("experiment", "dataset", "method", "seed", "provenance"))
    return json.dumps(keys | {"network": model, "config": config, "metrics": metrics}) + "\n"


NUMBERS = {
    "coverage": 0.5, "centre_bias": 2.0, "tilt_vertical": 0.125, "tilt_horizontal": 0.25,
    "periodicity_32": 0.75, "roughness": 1.0, "exact": False, "thumbnail": "data:,<&",
}  # fmt: skip
AGREED = {
    "correlation": 0.875, "ceiling": 0.9, "difference": 0.1, "standard_error": 0.1, "level": 3.0,
    "networks": 4,
}  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    landscapes = [line("b", 224, **NUMBERS), line("a", 240, **NUMBERS), line("a", 224, **NUMBERS)]
    evaluated = AGREED | {"level": 99.0}
    sampled = [line("a", 240, **AGREED), line("b", 224, batch_norm="eval", **evaluated)]
    (tmp_path / "landscapes.jsonl").write_text("".join(landscapes))
    (tmp_path / "sampled.jsonl").write_text("".join(sampled))
    return tmp_path


def test_one_row_for_each_model_and_size(folder):
    card = report_card(folder)
    assert list(zip(card.model, card["size"], card.own, strict=True)) == [
        ("a", 224, False), ("a", 240, True), ("b", 224, False),
    ]  # fmt: skip
    assert set(card.tilt) == {0.25}
    assert card["level"][1] == 3.0
    assert math.isnan(card["level"][0])
    assert math.isnan(card["level"][2])  # sampled in evaluation mode only


def test_html(folder):
    text = as_html(report_card(folder), "A & B")
    assert text.count('<th scope="row">') == 3
    assert "<caption>A &amp; B</caption>" in text
    assert "0.875" in text
    assert text.count("<td>–</td>") == 6  # three numbers of two rows that were not sampled
    assert "data:,&lt;&amp;" in text
    assert "Landscape of a at 240 pixels" in text


def test_a_missing_file_is_named(folder):
    (folder / "sampled.jsonl").unlink()
    with pytest.raises(FileNotFoundError, match=r"sampled\.jsonl"):
        report_card(folder)
