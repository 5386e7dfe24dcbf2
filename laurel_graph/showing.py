"""How a result shows itself: a few lines in a terminal, a table in a notebook."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import ClassVar

from .foreign_names import printable

LINES = 5
"""Lines of a result in a terminal."""
ROWS = 100
"""Rows of a table in a notebook; of what is left the number is said."""

Cell = str | int | float | None


class Shown:
    """A result that shows itself by what :meth:`shown` says, and by its table in a notebook."""

    columns_shown: ClassVar[tuple[str, ...]] = ()
    """Heads of the table."""

    def shown(self) -> list[str]:
        """Returns what is to be known first, line by line."""
        raise NotImplementedError(type(self).__name__)

    def rows_shown(self) -> Sequence[Sequence[Cell]]:
        """Returns the rows of the table."""
        return ()

    def __repr__(self) -> str:
        """Returns at most five lines."""
        lines = [printable(line) for line in self.shown() if line]
        if len(lines) > LINES:
            lines = [*lines[: LINES - 1], f"... {len(lines) - LINES + 1} more"]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        """Returns the lines and the table for a notebook; nothing in it is read as markup."""
        lines = [escape(printable(line)) for line in self.shown() if line]
        rows = list(self.rows_shown())
        head = "".join(f"<th>{escape(name)}</th>" for name in self.columns_shown)
        body = "".join(f"<tr>{''.join(f'<td>{_cell(cell)}</td>' for cell in row)}</tr>" for row in rows[:ROWS])
        more = f"<p>{len(rows) - ROWS} more rows</p>" if len(rows) > ROWS else ""
        table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{more}" if rows else ""
        return f"<p><strong>{lines[0]}</strong>{''.join(f'<br>{line}' for line in lines[1:])}</p>{table}"


def _cell(value: Cell) -> str:
    if value is None:
        return ""
    return escape(printable(f"{value:.4g}" if isinstance(value, float) else str(value)))


def counted(words: Sequence[str], limit: int = 3) -> str:
    """Returns ``"a, b, c and 4 more"``."""
    shown = ", ".join(words[:limit])
    return f"{shown} and {len(words) - limit} more" if len(words) > limit else shown
