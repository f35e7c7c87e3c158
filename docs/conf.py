"""The settings of the site: `make docs` builds it into build/docs."""

import importlib.util
import os
import runpy
import sys
from pathlib import Path

DOCS = Path(__file__).parent
sys.path.insert(0, str(DOCS / "_ext"))
# The kernels of notebooks inherit it: this checkout is what they show.
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(DOCS.parent), os.environ.get("PYTHONPATH"))))
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Notebooks compile much and run little: programs that are compiled in half of the time, and kept.
runpy.run_path(str(DOCS.parent / "adamflow/figures/fast_compilation.py"))["compile_fast"]()
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(DOCS.parent / "build" / "jax-cache"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")

import adamflow

project = "adamflow"
author = "The adamflow developers"
version = release = adamflow.__version__
html_title = "adamflow"

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "sphinx_design",
    "docstrings",
    "gallery",
    "reference",
    "repository_links",
]
# README.md is the list of pages for those who read them in the repository; index.md is its form for the site.
exclude_patterns = ["README.md", "_ext"]
highlight_language = "none"

# Pages and notebooks. What a notebook has computed is kept in build/, and computed again when its code changes.
myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 4
nb_execution_mode = "cache"
nb_execution_cache_path = str(DOCS.parent / "build" / "docs-notebooks")
nb_execution_timeout = 300
nb_execution_raise_on_error = True
nb_merge_streams = True
# Where PyTorch or flax is missing, their notebooks are shown without results; `make docs` installs both.
NEEDS = {"tutorials/monitor.md": ("torch",), "tutorials/frameworks.md": ("torch", "flax")}
nb_execution_excludepatterns = [
    page for page, packages in NEEDS.items() if not all(map(importlib.util.find_spec, packages))
]

# `make docs-links` asks the servers of other sites, which `make docs`, that needs no network, leaves out. Links within
# the site are checked by both.
linkcheck_anchors_ignore_for_url = [r"https://github\.com/.*"]
linkcheck_timeout = 20
linkcheck_retries = 2

# The reference. Types of other packages are not linked, so that a build needs no network.
nitpicky = True
nitpick_ignore_regex = [("py:.*", ".*")]
default_role = "py:obj"
add_module_names = False
toc_object_entries_show_parents = "hide"
autodoc_class_signature = "mixed"
autodoc_default_options = {"members": True, "show-inheritance": False}
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autosummary_generate = True
autosummary_ignore_module_all = False
maximum_signature_line_length = 80
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_attr_annotations = False
# As prose: napoleon would take what stands before a colon for a type.
napoleon_custom_sections = ["Returns"]
# As lists: two groups of parameters would be one again as fields.
napoleon_use_param = False
templates_path = ["_templates"]

html_theme = "pydata_sphinx_theme"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_theme_options = {
    "navbar_align": "left",
    "navigation_with_keys": False,
    "secondary_sidebar_items": ["page-toc", "sourcelink"],
    "show_prev_next": True,
    "header_links_before_dropdown": 7,
    "show_toc_level": 2,
}
html_sidebars = {"start": [], "gallery": [], "comparison": [], "index": []}
# A notebook is downloaded as .md, and by the link on top of it as .ipynb.
html_copy_source = True
