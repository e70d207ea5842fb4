"""The documentation as a site: `make docs`."""

import re
from typing import Any

import jitconv

project, author = "jitconv", "the jitconv authors"
version = release = jitconv.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
html_theme, html_title = "furo", f"jitconv {release}"
exclude_patterns = ["README.md"]
nitpicky = False  # types of torch and NumPy have pages elsewhere, and this is built without a network

myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"


def _outside(app: Any, document: str, source: list[str]) -> None:
    """Links beside docs/ work where the repository is read; on the site examples are files too, all else is a path."""
    source[0] = re.sub(r"\[[^\]]+\]\(\.\./(?!examples/[^)]+\.\w+\))([^)]+)\)", r"`\1`", source[0])


def setup(app: Any) -> None:
    app.connect("source-read", _outside)
