"""The pages as a site: `sphinx-build -W -n docs docs/_build`, which `scripts/test` runs."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from sphinx.application import Sphinx

sys.path.insert(0, str(Path(__file__).parent))

from generate import MARKS

from launcher.version import __version__

project = "launcher"
version = release = __version__
copyright = "the authors of launcher, Apache-2.0"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"launcher {__version__}"
html_show_sphinx = False

myst_enable_extensions = ["deflist"]
myst_heading_anchors = 4  # the anchors that GitHub gives a page's headings, so that links work in both places
suppress_warnings = ["misc.highlighting_failure"]  # excerpts of recipes with an ellipsis

autodoc_typehints = "description"
autodoc_typehints_description_target = "documented_params"
autodoc_member_order = "bysource"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
nitpick_ignore_regex = [
    ("py:.*", "(?!launcher).*"),  # names of torch and Python have their own sites
    ("py:.*", r"launcher\.(recipe|world)\..*"),  # not public
]


_OUTSIDE = re.compile(r"\]\((?=(?:\.\./)+(?:slurm/)?[A-Z]+\.md\))")  # files beside docs/


def _prepare(app: Sphinx, page: str, source: list[str]) -> None:
    """Puts what is generated where a page has its mark, and makes links to files outside docs/ downloads."""
    for mark, text in MARKS.items():
        if mark in source[0]:
            source[0] = source[0].replace(mark, text())
    source[0] = _OUTSIDE.sub("](path:", source[0])


def setup(app: Sphinx) -> None:
    """Sphinx calls this."""
    app.connect("source-read", _prepare)
