"""Sphinx extension: what the book's pages need and Jupyter Book has no setting for.

* serves MathJax and the widget scripts from the book itself (fetched by assets.py);
* drops the scripts of sphinx-thebe, which Jupyter Book always loads and which declare
  a constant twice;
* makes the bibliography a list that screen readers understand;
* `{build-facts}`, the table of versions and hardware on the status page.
"""

import os
import platform
import time
from importlib.metadata import version
from pathlib import Path

from pilcro.experiments.results import cpu
from sphinx.util.docutils import SphinxDirective

ASSETS = Path(__file__).resolve().parents[2] / "_build" / "assets"
VERSIONS = ("pilcro", "torch", "torchvision", "numpy", "matplotlib", "jupyter-book", "sphinx")


def serve_assets(app, config):
    """Without the assets the CDN addresses that Sphinx and MyST-NB bring along stay."""
    if not ASSETS.is_dir():
        return
    # Set here, not in _config.yml: the paths are then relative to _static on every page.
    config.html_static_path.append(str(ASSETS))
    config.mathjax_path = "mathjax/es5/tex-svg.js"
    config.nb_ipywidgets_js = {
        "requirejs/require.js": {},
        "@jupyter-widgets/html-manager/dist/embed-amd.js": {},
    }


def drop_thebe(app, pagename, templatename, context, doctree):
    context["script_files"] = [
        script
        for script in context.get("script_files", [])
        if "thebe" not in f"{script.filename}{script.attributes.get('body')}".lower()
    ]


def list_citations(app, pagename, templatename, context, doctree):
    """Docutils makes a `list` whose children have the deprecated role `doc-biblioentry`."""
    context["body"] = context.get("body", "").replace('role="doc-biblioentry"', 'role="listitem"')


class BuildFacts(SphinxDirective):
    def run(self):
        self.env.note_reread()  # the facts are those of this build
        facts = {"Python": platform.python_version()}
        facts |= {name: version(name) for name in VERSIONS}
        facts |= hardware()
        facts["Built"] = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
        lines = [":header-rows: 1", "", "* - What", "  - This build"]
        for what, value in facts.items():
            lines += [f"* - {what}", f"  - {value}"]
        return self.parse_text_to_nodes("```{list-table}\n" + "\n".join(lines) + "\n```\n")


def hardware():
    import torch

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    return {
        "System": f"{platform.system()} {platform.machine()}",
        "Processor": cpu(),
        "Cores": os.cpu_count(),
        "GPU": gpu,
    }


def setup(app):
    # Before MyST-NB and MathJax read their settings.
    app.connect("config-inited", serve_assets, priority=100)
    # After every extension has added its scripts.
    app.connect("html-page-context", drop_thebe, priority=900)
    app.connect("html-page-context", list_citations)
    app.add_directive("build-facts", BuildFacts)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
