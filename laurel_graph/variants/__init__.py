"""Variants of the residual: each *term* is one file with its formula, tensors, start, function body and torch forward.

A variant is one term or several joined by ``+`` (``rw+lr``, ``gate``). Terms of your own are in as soon as they are
registered, by the decorator :func:`register` in a module that is imported (``laurel --plugin MODULE``) or that an
installed package names as an entry point of ``laurel_graph.variants``; what a file says never imports anything.
:func:`~laurel_graph.variants.check.check_term` holds the parts of a term against each other.
"""

from .registry import GROUP, TERMS, load_plugin, register, term, terms_of
from .term import Operands, Option, Scalar, Site, Term

__all__ = [
    "GROUP",
    "TERMS",
    "Operands",
    "Option",
    "Scalar",
    "Site",
    "Term",
    "load_plugin",
    "register",
    "term",
    "terms_of",
]
