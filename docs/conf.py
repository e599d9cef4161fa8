"""How the documentation is built: ``sphinx-build -n -W``, so a dead reference is an error.

The build needs no network: names of other projects stand as text (`nitpick_ignore_regex`)
instead of being looked up in their inventories.
"""

from importlib.metadata import version as version_of

from sphinx.application import Sphinx
from sphinx.ext.napoleon import Config, GoogleDocstring

project = "Trimaran"
author = "The Trimaran authors"
copyright = "The Trimaran authors"
release = version = version_of("trimaran")

extensions = ["myst_parser", "sphinx.ext.autodoc"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"Trimaran {release}"

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True  # `time.time`, and not what it looks like in memory
autodoc_default_options = {"members": True, "show-inheritance": True}
python_use_unqualified_type_names = True
default_role = "py:obj"

_OTHERS = "abc|collections|contextlib|enum|httpx|msgspec|os|pathlib|pytest|random"
_OTHERS += "|starlette|structlog|trio|types|typing"
nitpick_ignore_regex = [
    ("py:.*", rf"({_OTHERS})\..*"),
    ("py:.*", r"trimaran\.(.*\.)?_\w+"),  # a type variable, say
]


def _read_sections(
    app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]
) -> None:
    """Google's sections (``Args:``), as the napoleon extension reads them.

    The extension itself would take what stands before a colon in an attribute's text for
    its type; types are annotations here.
    """
    kind = "object" if what in {"attribute", "data", "property"} else what
    lines[:] = GoogleDocstring(lines, Config(), app, kind, name, obj, options).lines()


def _leave_out_private_bases(
    app: Sphinx, name: str, obj: object, options: object, bases: list[type]
) -> None:
    """Who inherits what behind the scenes is no matter of users."""
    bases[:] = [base for base in bases if not base.__name__.startswith("_")] or [object]


def setup(app: Sphinx) -> None:
    """Sphinx calls this."""
    app.connect("autodoc-process-docstring", _read_sections)
    app.connect("autodoc-process-bases", _leave_out_private_bases)
