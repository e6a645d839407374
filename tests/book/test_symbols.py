"""The notation page lists the letters of every formula, in a row of that chapter or an earlier."""

import pytest
from exercises import divide
from myst import ROOT, chapter_number
from symbols import letters, listed

UNIVERSAL = {r"\pi"}  # the number; a chapter that means something else has a row for it


@pytest.fixture(scope="module")
def first():
    return listed((ROOT / "book" / "notation.md").read_text(encoding="utf-8"))


def test_letters_are_listed(chapter, chapter_path, first):
    main, _ = divide(chapter)  # exercises say what their letters mean
    text = "\n\n".join(cell.source for cell in main if cell.cell_type == "markdown")
    now = chapter_number(f"book/{chapter_path.stem}")
    known = UNIVERSAL | {letter for letter, chapter in first.items() if chapter <= now}
    assert letters(text) - known == set()


def test_letters_of_a_text():
    text = r"""
$\mathcal{L}(\hat x) = \operatorname{Var}(z)$, `$q$`, {eq}`r`

:::{prf:proof}
$$
\begin{aligned} \rho_{\text{abc}} = \mathrm{d} I \end{aligned}
$$ (label)
:::

```{code-block} python
"$n$"
```
"""
    assert letters(text) == {r"\mathcal L", "x", "z", r"\rho", "I"}


def test_the_first_chapter_counts():
    rows = r"""
| $q$, $\rho$ | a second moment; a correlation | [4](04_second_moments.ipynb) |
| $x$ | an image | [1](01_importance_landscapes.ipynb) |
| $q(x)$ | another | [7](07_measuring_curvature.ipynb) |
"""
    assert listed(rows) == {"q": 4, r"\rho": 4, "x": 1}
