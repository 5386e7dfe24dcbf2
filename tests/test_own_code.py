"""Whose a line of code is."""

import sys
from pathlib import Path

import laurel_graph
from laurel_graph import errors
from laurel_graph.own_code import is_ours
from laurel_graph.passes import base


def test_files_of_the_package_are_ours_and_a_users_beside_it_are_not(monkeypatch):
    assert is_ours(errors.__file__) and is_ours(base.__file__)
    assert not is_ours(__file__)
    around = str(Path(__file__).resolve().parent)
    monkeypatch.setattr(sys.modules["laurel_graph"], "__path__", [*laurel_graph.__path__, around])  # as if editable
    assert not is_ours(__file__)
    assert is_ours(errors.__file__)
