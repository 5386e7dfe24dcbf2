"""Foreign text as names: what a model, an adapter, data or a config says never enters code, a module tree or a screen
as it is.

torch.fx writes attribute names into the Python that it generates without escaping them. Every name that comes from
outside and that such code will hold passes through here first; the table that :func:`laurel_graph.import_onnx` keeps
(:attr:`laurel_graph.importer.ImportRecord.tensors`) tells which original each one stands for.
"""

from __future__ import annotations

import keyword
import re
import unicodedata
from collections.abc import Iterable
from zlib import crc32

LONGEST = 96
"""Characters of the longest identifier, path part or name that a message shows whole."""

DEEPEST = 24
"""Parts of the deepest path: modules are walked recursively."""

VARIABLES = frozenset(
    "self torch inf nan device NoneType fx_pytree pytree getattr slice".split()  # noqa: SIM905
)
"""What the code that torch.fx generates calls by these names itself, and no argument or value may hide."""


def identifier(text: str) -> str:
    """Returns *text* as an ASCII Python identifier of at most :data:`LONGEST` characters, always the same one.

    What is no letter, digit or underscore becomes an underscore; keywords, a leading digit and more than one leading
    underscore (private and special names of Python) are changed, too. Different texts may give one identifier: see
    :class:`Namespace`.
    """
    name = re.sub(r"^__+", "_", re.sub(r"[^A-Za-z0-9_]", "_", _bounded(text))) or "_"
    return f"_{name}" if name[0].isdigit() or keyword.iskeyword(name) else name


def _bounded(text: str) -> str:
    """Returns *text*, or as much of its beginning as fits with a checksum of the whole."""
    if len(text) < LONGEST:  # identifier() may put one character in front
        return text
    mark = f"_{crc32(text.encode('utf-8', 'surrogatepass')):08x}"
    return text[: LONGEST - len(mark) - 1] + mark


def path_parts(name: str) -> list[str]:
    """Returns the parts of a dotted foreign name as parts of an attribute path: ``layer.0.weight`` stays as it is.

    Parts are identifiers, or all digits and letters with a digit in front, as ``torch.nn.Sequential`` has them. Of a
    name of too many parts the last ones become one.
    """
    parts = name.split(".", DEEPEST - 1)
    return [_part(part) for part in parts]


def _part(text: str) -> str:
    return text if len(text) <= LONGEST and re.fullmatch(r"[0-9][A-Za-z0-9_]*", text) else identifier(text)


def is_safe_in_code(path: str) -> bool:
    """Whether torch.fx writes the attribute path *path* of a user's module into code that means just that attribute.

    It writes a part as ``.part`` if that is an identifier, else as ``getattr(..., "part")`` without escaping.
    """
    return all(
        part.isprintable()
        and not keyword.iskeyword(part)
        and '"' not in part
        and "\\" not in part
        and unicodedata.normalize("NFKC", part) == part  # Python reads identifiers in this form
        for part in path.split(".")
    )


class Namespace:
    """Gives out identifiers, each of them once.

    Args:
        taken: names that are never given out.
    """

    def __init__(self, taken: Iterable[str] = ()) -> None:
        self._taken = set(taken)
        self._counts: dict[str, int] = {}

    def claim(self, text: str) -> str:
        """Returns *text* as an identifier that was not given out before, numbered if need be."""
        return self._claimed(identifier(text))

    def claim_part(self, text: str) -> str:
        """Returns *text* as a part of an attribute path that was not given out before, numbered if need be."""
        return self._claimed(_part(text))

    def holds(self, name: str) -> bool:
        """Whether *name* was given out, or is never given out."""
        return name in self._taken

    def _claimed(self, name: str) -> str:
        free = name
        while free in self._taken:
            self._counts[name] = self._counts.get(name, 0) + 1
            free = f"{name}_{self._counts[name]}"
        self._taken.add(free)
        return free


def safe_paths(paths: Iterable[str], taken: Iterable[str] = ()) -> dict[str, str]:
    """Returns each attribute path of a user's module, and the path to use in a graph: itself if it is safe in code.

    Parts that are not safe become identifiers that none of their siblings has; equal prefixes stay equal. No path
    begins with one of the *taken* names.
    """
    paths = sorted(dict.fromkeys(paths), key=lambda path: not is_safe_in_code(path))
    scopes = {"": Namespace(taken)}
    renamed: dict[str, str] = {"": ""}
    for path in paths:
        before = ""
        for part in path.split("."):
            whole = f"{before}.{part}" if before else part
            if whole not in renamed:
                scope = scopes.setdefault(before, Namespace())
                own = scope._claimed(part) if is_safe_in_code(part) else scope.claim_part(part)
                renamed[whole] = f"{renamed[before]}.{own}" if before else own
            before = whole
    return {path: renamed[path] for path in paths}


def printable(text: str, longest: int | None = None) -> str:
    """Returns *text* with everything that is no printable character as an escape sequence, such as ``\\x1b``.

    Control characters, line breaks, marks of writing direction and lone surrogates cannot act on a terminal or a page
    then. With *longest*, the middle of a longer text is left out.
    """
    if longest is not None and len(text) > longest:
        text = f"{text[: longest // 2]}...{text[len(text) - longest // 2 :]}"
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def foreign_text(error: BaseException, longest: int = 300) -> str:
    """Returns the message of an error that code of the user's own raised, on one line, fit for a terminal.

    Such an error may fail to tell what it is.
    """
    try:
        text = str(error)
    except Exception:  # its own __str__ raises
        text = "it cannot say what it is"
    return printable(" ".join(text.split()), longest)


def bare(name: str, path: str) -> str:
    """Returns the name that a value has in its own graph.

    Args:
        name: its scoped name: the path of the body that makes it, "" for the main graph, and its own name.
        path: the path of a body that sees it.
    """
    while path and not name.startswith(path):
        path = around(path)
    return name[len(path) :]


def around(path: str) -> str:
    """Returns the path of the graph around the body at *path*."""
    return path[: path.rfind("]/", 0, -2) + 2] if "]/" in path[:-2] else ""
