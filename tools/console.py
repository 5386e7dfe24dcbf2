"""What the command line prints where: results on stdout, progress and errors on stderr, JSON alone."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import sys
import textwrap
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import zip_longest
from pathlib import Path
from typing import Any, NoReturn

from laurel_graph.foreign_names import printable


def print_json(data: Any) -> None:
    """Prints one JSON object on stdout; values JSON does not know (infinity, paths) are written as text or null.

    Characters that are not printable are written as JSON's own escapes.
    """
    text = json.dumps(_plain(data), indent=2, ensure_ascii=False)
    _write(re.sub(r"[^\n -~]", _json_escape, text) + "\n")


def _json_escape(match: re.Match[str]) -> str:
    return match[0] if match[0].isprintable() else json.dumps(match[0])[1:-1]


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and value != value:
        return None
    if isinstance(value, float) and value in (float("inf"), float("-inf")):
        return str(value)
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Prints a table on stdout; numbers are right-aligned. Nothing in it is read as markup.

    It is as wide as the terminal at most, as 160 characters where there is none: the widest columns wrap.
    """
    cells = [[printable(cell) if isinstance(cell, str) else format_cell(cell) for cell in row] for row in rows]
    numeric = [bool(cells) and all(row[i][:1] in "-0123456789" for row in cells if row[i]) for i in range(len(columns))]
    lines = [list(map(printable, columns)), *cells]
    widths = _fitting([max(_cell_width(line[i]) for line in lines) for i in range(len(columns))])
    head, *body = (
        "\n".join(_table_line(line, widths, numeric, "│" if place else "┃")) for place, line in enumerate(lines)
    )
    _write("\n".join([printable(title), head, "━╇━".join("━" * width for width in widths), *body, ""]))


_GAP = 3
"""Characters between two columns of a table."""
_FEWEST = 5
"""Lines of a table that are shown on a terminal however low it is."""
_NARROWEST = 8
"""Characters of the narrowest column that text wraps in."""


def _fitting(widths: list[int]) -> list[int]:
    """Returns the widths of a table's columns, the widest ones cut down until a line fits."""
    widths = list(widths)
    room = shutil.get_terminal_size().columns if sys.stdout.isatty() or "COLUMNS" in os.environ else 160
    excess = sum(widths) + _GAP * (len(widths) - 1) - room
    while excess > 0 and max(widths) > _NARROWEST:
        widest = widths.index(max(widths))
        second = max((width for i, width in enumerate(widths) if i != widest), default=0)
        cut = min(excess, max(1, widths[widest] - max(second, _NARROWEST)))
        widths[widest] -= cut
        excess -= cut
    return widths


def _table_line(cells: Sequence[str], widths: Sequence[int], numeric: Sequence[bool], bar: str) -> Iterator[str]:
    """Yields the lines that one row of a table takes."""
    folded = [_wrapped(cell, width) for cell, width in zip(cells, widths, strict=True)]
    for parts in zip_longest(*folded, fillvalue=""):
        padded = []
        for part, width, right in zip(parts, widths, numeric, strict=True):
            space = " " * (width - _cell_width(part))
            padded.append(space + part if right else part + space)
        yield f" {bar} ".join(padded).rstrip()


def _wrapped(cell: str, width: int) -> list[str]:
    if len(cell) <= width and cell.isascii():
        return [cell]
    if cell.isascii():
        return textwrap.wrap(cell, width)
    from rich.cells import chop_cells

    return chop_cells(cell, width)


def _cell_width(text: str) -> int:
    """Columns that *text* takes on a terminal."""
    if text.isascii():
        return len(text)
    from rich.cells import cell_len

    return cell_len(text)


def lines_left(wanted: int, below: int) -> int:
    """Returns how many lines of *wanted* fit a terminal beside *below* other ones; all where there is no terminal."""
    if not sys.stdout.isatty():
        return wanted
    room = max(shutil.get_terminal_size().lines - below, _FEWEST)
    return wanted if wanted <= room else room


def format_cell(value: object) -> str:
    """Returns a number in four significant digits, a boolean as yes or no, ``None`` as nothing."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.4g}" if isinstance(value, float) else printable(str(value))


def relative(source: str) -> str:
    """Returns a source line without the folders of this machine: relative to here, or its last two parts."""
    path = Path(source)
    if not path.is_absolute():
        return source
    if path.is_relative_to(Path.cwd()):
        return str(path.relative_to(Path.cwd()))
    return "/".join(path.parts[-2:])


def say(text: str) -> None:
    """Prints one line (or more) on stdout."""
    _write(_lines(text))


def print_wrote(json: bool, what: dict[str, Any]) -> None:
    """Says which file was written: *what* as JSON, or the path under ``output`` in a line."""
    if json:
        print_json(what)
    else:
        say(f"wrote {what['output']}")


def _write(text: str) -> None:
    try:
        sys.stdout.write(text)
    except BrokenPipeError:
        pipe_closed()


def ready_streams() -> None:
    """Makes stdout and stderr take any text, and swallow it where the program was started without them."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def pipe_closed() -> NoReturn:
    """Ends the program quietly: nobody reads what it prints any more."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(0)


_TOLD_AFTER = 1.0
"""Seconds from which on it is guessed how long the rest takes."""


class _Loudness:
    """How much goes to stderr."""

    level = "info"


LEVELS = ("error", "warning", "info", "debug")
"""What goes to stderr: errors alone; notes and warnings too; progress too; ONNX Runtime's own warnings and
tracebacks, too.
"""


def set_level(level: str) -> None:
    """Chooses what goes to stderr, one of :data:`LEVELS`."""
    _Loudness.level = level


def is_quiet() -> bool:
    """Whether no progress is wanted on stderr."""
    return _Loudness.level in ("error", "warning")


def note(text: str) -> None:
    """Prints one line (or more) on stderr, unless only errors are wanted there."""
    if _Loudness.level != "error":
        complain(text)


def complain(text: str) -> None:
    """Prints an error on stderr."""
    sys.stderr.write(_lines(text))


def _lines(text: str) -> str:
    """Returns *text* with nothing in it that could act on a terminal, other than line breaks."""
    return "\n".join(map(printable, text.split("\n"))) + "\n"


def said(seconds: float) -> str:
    """Returns a span of time as a person says it: ``40 s``, ``3 min``, ``1 h 20 min``."""
    whole = round(seconds)
    if whole < 100:
        return f"{whole} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


@contextmanager
def progress(text: str) -> Iterator[None]:
    """Shows *text* on stderr while the block runs; a plain line where stderr is no terminal."""
    if is_quiet() or not sys.stderr.isatty():
        if not is_quiet():
            note(f"{text} ...")
        yield
        return
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    from laurel_graph.steps import listening

    columns = (SpinnerColumn(), TimeElapsedColumn(), TextColumn("{task.description}", markup=False))  # its end may go
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task, began = bar.add_task(printable(text)), time.monotonic()

        def tell(what: str, done: int, total: int) -> None:
            nonlocal began
            if not done:
                began = time.monotonic()
            how_far = _how_far(done, total, time.monotonic() - began)
            bar.update(task, description=printable(f"{how_far}{what}: {text}"))

        with listening(tell):
            yield


def _how_far(done: int, total: int, seconds: float) -> str:
    """Returns ``3/40, 12 s left: ``: what is left is what each step took so far, times the steps that are left."""
    if not total:
        return ""
    left = f", {said(seconds * (total - done) / done)} left" if done and seconds > _TOLD_AFTER else ""
    return f"{done}/{total}{left}: "


def quiet_runtime() -> None:
    """Keeps ONNX Runtime's warnings about the models themselves off stderr; its errors become ours."""
    if _Loudness.level != "debug":
        import onnxruntime

        onnxruntime.set_default_logger_severity(4)
