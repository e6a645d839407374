"""In the book as it was built, every solution passes its check and every stub fails it politely."""

import pytest
from executed import executed
from exercises import code, divide
from myst import ROOT


def printed(cell) -> list[str]:
    streams = [o for o in cell.outputs if o.output_type == "stream" and o.name == "stdout"]
    return "".join(stream.text for stream in streams).split("\n")


@pytest.mark.usefixtures("html")
def test_exercises(chapter_path):
    for exercise in divide(executed(chapter_path, ROOT))[1]:
        stub, solution = code(exercise.cells)[-1], code(exercise.solution)[0]
        assert any(line.startswith("not yet: ") for line in printed(stub)), exercise.label
        assert "right" not in printed(stub), exercise.label
        assert any(line.endswith("right") for line in printed(solution)), exercise.label
