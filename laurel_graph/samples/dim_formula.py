"""Names of dims that are formulas, as ``past_sequence_length + 1``."""

from __future__ import annotations

import re
from collections.abc import Callable

from .sizes import Dim, plus, scaled

_TERM = re.compile(r"\s*([+-]?)\s*(?:(\d+)\s*\*\s*)?(\d+|[^\s+*\-][^\s+*]*)\s*(?:\*\s*(\d+)\s*)?")


def parsed(text: str, symbol: Callable[[str], Dim]) -> Dim:
    """Returns a dim's name as a sum; one that is no sum of names and numbers is a symbol itself.

    Args:
        text: the name.
        symbol: gives the dim that a name stands for.
    """
    text = text.strip()
    if not text:
        return None
    if "+" not in text and not re.search(r"\s-\s|\*", text):
        return symbol(text)
    at, dim = 0, 0
    terms: list[tuple[int, str]] = []
    while at < len(text):
        match = _TERM.match(text, at)
        if match is None or match.end() == at or (at and not match[1]):
            return symbol(text)
        factor = int(match[2] or 1) * int(match[4] or 1) * (-1 if match[1] == "-" else 1)
        terms.append((factor, match[3]))
        at = match.end()
    if any(not term.isdigit() and not re.fullmatch(r"[\w.:]+", term) for _, term in terms):
        return symbol(text)
    result: Dim = dim
    for factor, term in terms:
        result = plus(result, scaled(int(term) if term.isdigit() else symbol(term), factor))
    return result
