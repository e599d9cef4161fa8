"""How the documentation is built: ``sphinx-build -n -W``, so a dead reference is an error.

The build needs no network: names of other projects stand as text (`nitpick_ignore_regex`)
instead of being looked up in their inventories.
"""

from importlib.metadata import version as version_of

project = "Trimaran"
author = "The Trimaran authors"
copyright = "The Trimaran authors"
release = version = version_of("trimaran")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"Trimaran {release}"

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_default_options = {"members": True, "show-inheritance": True}
python_use_unqualified_type_names = True
default_role = "py:obj"

_OTHER_PROJECTS = (
    "collections|contextlib|httpx|msgspec|os|pathlib|pytest|structlog|trio|types|typing"
)
nitpick_ignore_regex = [("py:.*", rf"({_OTHER_PROJECTS})\..*")]
