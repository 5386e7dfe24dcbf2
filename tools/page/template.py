"""The templates of the pages: one style, all text escaped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from laurel_graph.foreign_names import printable
from laurel_graph.tools.console import relative
from laurel_graph.tools.dependencies import missing

FOLDER = Path(__file__).parent
"""Where the templates and the style lie."""


def page_template(name: str) -> Any:
    """Returns a template of this folder, in which the style is known and all text is escaped.

    Raises:
        DependencyError: jinja2 is missing.
    """
    try:
        import jinja2
        from markupsafe import Markup
    except ImportError as error:
        raise missing("the page", str(error.name)) from error
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, finalize=_cell)
    environment.filters["relative"] = relative
    environment.globals["style"] = Markup("<style>\n" + (FOLDER / "style.css").read_text(encoding="utf-8") + "</style>")
    return environment.from_string((FOLDER / name).read_text(encoding="utf-8"))


def _cell(value: Any) -> Any:
    """Returns foreign text without control characters; what is markup of ours, or no text, as it is."""
    return printable(value) if type(value) is str else value
