"""A Sphinx extension: names in code cells lead to the API page, which lists where each is used.

sphinx-codeautolink does both. It expects a title in every section; the boxes of sphinx-proof and
sphinx-exercise are sections without one, and have titles outside of sections.
"""

import sphinx_codeautolink.extension
from docutils import nodes
from sphinx.application import Sphinx
from sphinx_codeautolink.extension.backref import SummaryNode
from sphinx_codeautolink.extension.block import CodeBlockAnalyser


class Analyser(CodeBlockAnalyser):
    """Leaves out what has no title, and the examples in docstrings: they use what they explain."""

    def visit_title(self, node: nodes.title) -> None:
        if isinstance(node.parent, nodes.section):
            super().visit_title(node)

    def visit_section(self, node: nodes.section) -> None:
        if isinstance(node[0], nodes.title):
            super().visit_section(node)

    def depart_section(self, node: nodes.section) -> None:
        if isinstance(node[0], nodes.title):
            super().depart_section(node)

    def visit_doctest_block(self, node: nodes.doctest_block) -> None:
        pass


def plain_summaries(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """What unfolds a list must not hold a link: a keyboard could reach only one of the two."""
    for summary in doctree.findall(SummaryNode):
        summary.children = [nodes.Text("Where it is used")]


def setup(app: Sphinx) -> dict:
    sphinx_codeautolink.extension.CodeBlockAnalyser = Analyser
    app.setup_extension("sphinx_codeautolink")
    app.connect("doctree-resolved", plain_summaries, priority=900)  # when it has made them
    return {"parallel_read_safe": True, "parallel_write_safe": True}
