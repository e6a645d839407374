"""Sphinx extension: the book in LaTeX, with the numbers that its pages have.

sphinx-jupyterbook-latex numbers every page as a chapter, and exercises and propositions by section.
"""

from pathlib import Path
from statistics import median

import yaml
from docutils import nodes
from sphinx.addnodes import number_reference
from sphinx_exercise.nodes import exercise_latex_number_reference

# Parts have their number in their name. Depth -1 numbers no chapter.
PREAMBLE = r"""
\newcounter{bookpart}
\AtBeginDocument{%
  \let\setminus\smallsetminus % the font has no other
  \let\partwithnumber\part
  \renewcommand{\part}[1]{%
    \setcounter{secnumdepth}{-2}\partwithnumber{#1}%
    \stepcounter{bookpart}%
    \setcounter{secnumdepth}{\ifcase\value{bookpart}DEPTHS\fi}}}
"""
LONG = 30  # rows; Sphinx breaks a longer table over pages, but not its lines


def number_chapters(app, config):
    parts = yaml.safe_load(Path(config.external_toc_path).read_text(encoding="utf-8"))["parts"]
    depths = "".join(r"\or 1" if part.get("numbered") else r"\or -1" for part in parts)
    config.latex_elements["preamble"] = PREAMBLE.replace("DEPTHS", depths)


def number_below_parts(app, env):
    """For LaTeX, which numbers figures and formulas: there a chapter is one level deeper."""
    app.config.numfig_secnum_depth = 2


def refer_to_exercises(app, doctree, docname):
    """sphinx-exercise forgets those of other pages."""
    for node in list(doctree.findall(number_reference)):
        label = (node.get("refid") or node.get("refuri", "")).rpartition("#")[2]
        exercise = app.env.sphinx_exercise_registry.get(label)
        if exercise is None or isinstance(node, exercise_latex_number_reference):
            continue
        number = app.env.toc_fignumbers[exercise["docname"]]["exercise"][label]
        text = nodes.Text(f"Exercise {'.'.join(map(str, number))}")
        node.replace_self(exercise_latex_number_reference("", "", text, refid=label))


def break_lines(app, doctree, docname):
    for table in doctree.findall(nodes.table):
        rows = [row.children for row in table.findall(nodes.row)]
        if len(rows) > LONG:
            columns = zip(*rows, strict=True)
            table["classes"].append("colwidths-given")
            for spec, column in zip(table.findall(nodes.colspec), columns, strict=True):
                spec["colwidth"] = max(8, int(median(len(entry.astext()) for entry in column)))


def prepare(app):
    if app.builder.name == "latex":
        app.config.numfig_secnum_depth = 1  # for what Sphinx numbers, while it reads
        app.connect("env-check-consistency", number_below_parts)
        app.connect("doctree-resolved", refer_to_exercises)
        app.connect("doctree-resolved", break_lines)


def setup(app):
    app.connect("config-inited", number_chapters, priority=100)  # others add to the preamble
    app.connect("builder-inited", prepare, priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
