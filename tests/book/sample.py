"""A small chapter inside the frame, built here, so that each test can break one thing in it."""

import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

ALT = "A dark square with one bright dot in its centre, fading towards the four borders"
WORDS = "You read plain words about borders, kernels and paths in this short paragraph here. " * 12

OPENING = """\
(sample-start)=
# A sample chapter

:::{admonition} Before you start
:class: tip

- **Objectives**: see what a chapter holds; use {term}`importance`.
- **Prerequisites**: [backpropagation](https://d2l.ai/chapter_multilayer-perceptrons/backprop.html)
  and {doc}`notation`.
- **Time**: 20 minutes to read, 1 minute to run on a CPU, 30 seconds on a GPU.
:::
"""
QUESTION = """\
Which pixels does a network listen to before it has learnt anything? Look at {numref}`fig-dot`.
"""
DEFINITION = r"""
## What it is

```{prf:definition} Importance
:label: def-importance
The importance of a pixel is the mean squared gradient, as in {eq}`eq-importance`.
```

$$
p_i = \mathbb{E}\Big[\Big(\frac{\partial y}{\partial x_i}\Big)^2\Big]
$$ (eq-importance)

By {prf:ref}`def-importance` and {cite:t}`luo2016`, see
{numref}`Figure %s <fig-dot>` {cite}`luo2016`.

```{prf:proof}
It follows from

$$ a = b $$

and nothing else.
```

- a list with a note in it

  ```{note}
  Inside the list, `{eq}` in code stays and so does $x_{i}$.
  ```
"""
ENDING = """\
## Summary

- One image, one gradient.
- Many images, one landscape.

## What is next

The {doc}`next chapter <02_second>` counts the paths, and {ref}`sample-start` is behind you.

## Further reading

{cite:t}`luo2016` measure receptive fields; [the notation](notation.md) is on its page.
"""
FIGURE = """\
import matplotlib.pyplot as plt

plt.imshow([[0, 1], [2, 3]])
plt.show()"""
WIDGET = """\
import ipywidgets as widgets

from matplotlib.figure import Figure
import base64, io

def picture(depth):
    figure = Figure(figsize=(2, 2))
    figure.subplots().imshow([[depth, 1], [2, 3]])
    figure.savefig(buffer := io.BytesIO(), format="png")
    data = base64.b64encode(buffer.getvalue()).decode()
    return widgets.HTML(f'<img alt="A checkerboard of two by two squares at depth {depth}"'
                        f' src="data:image/png;base64,{data}">')

slider = widgets.SelectionSlider(options=["1", "2", "3"], description="depth")
stack = widgets.Stack([picture(1), picture(2), picture(3)], selected_index=0)
widgets.jslink((slider, "index"), (stack, "selected_index"))
widgets.VBox([slider, stack])"""
CHECK = """\
def check_number(f):
    got = f()
    print("right" if got == 7 else f"not yet: expected 7, got {got}")
    return got == 7"""


def exercise(number: int) -> list:
    name = f"ex-{number}"
    return [
        new_markdown_cell(f"```{{exercise}} Seven\n:label: {name}\nReturn 7.\n```", id=name),
        new_code_cell("def seven():\n    return None\n\n\ncheck_number(seven);", id=f"{name}-stub"),
        new_markdown_cell(
            "```{hint}\n:class: dropdown\nSix and one.\n```",
            id=f"{name}-hint",
        ),
        new_markdown_cell(
            f"```{{solution-start}} {name}\n:class: dropdown\n```",
            id=f"{name}-solution",
        ),
        new_code_cell(
            "def seven_solved():\n    return 7\n\n\nassert check_number(seven_solved)",
            id=f"{name}-code",
        ),
        new_markdown_cell("```{solution-end}\n```", id=f"{name}-end"),
    ]


def chapter() -> nbformat.NotebookNode:
    figure = {"caption": "A bright dot.", "name": "fig-dot"}
    checked = new_code_cell("# NBVAL_CHECK_OUTPUT\nprint(7)", id="checked", execution_count=4)
    checked.outputs = [nbformat.v4.new_output("stream", name="stdout", text="7\n")]
    cells = [
        new_markdown_cell(OPENING, id="opening"),
        new_markdown_cell(QUESTION, id="question"),
        new_code_cell(CHECK, id="set-up", metadata={"tags": ["hide-input"]}),
        new_code_cell(
            FIGURE, id="figure", metadata={"mystnb": {"figure": figure, "image": {"alt": ALT}}}
        ),
        new_markdown_cell(DEFINITION, id="definition"),
        new_code_cell(WIDGET, id="widget"),
        checked,
    ]
    for number in range(10):
        cells.append(new_markdown_cell(WORDS, id=f"words-{number}"))
        cells.append(new_code_cell(f"x_{number} = {number}", id=f"code-{number}"))
    cells.append(new_markdown_cell("## Exercises", id="exercises"))
    for number in range(3):
        cells += exercise(number)
    cells.append(new_markdown_cell(ENDING, id="ending"))
    metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    return new_notebook(cells=cells, metadata=metadata)
