"""Foreign text as identifiers, path parts and printable text."""

import keyword
import re

import pytest
import torch
from hostile import NAMES, PAYLOADS
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import fx, nn

from laurel_graph.errors import near
from laurel_graph.foreign_names import (
    LONGEST,
    Namespace,
    identifier,
    is_safe_in_code,
    path_parts,
    printable,
    safe_paths,
)

texts = st.text(st.characters(exclude_categories=()), max_size=200)


@given(texts)
@settings(max_examples=200, deadline=None)
@example("__class__")
@example("class")
@example("0")
@example("")
@example("é")
@example("x" * 96)
@example("0" * 96)
def test_identifier_is_a_short_ascii_variable_when_text_is_anything(text):
    name = identifier(text)
    assert re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name) and len(name) <= LONGEST
    assert not keyword.iskeyword(name) and not name.startswith("__")
    assert name == identifier(text)


@pytest.mark.parametrize("name", ["x", "layer_0", "Conv2d", "_private", "input_ids"])
def test_identifier_is_the_text_itself_when_it_is_one(name):
    assert identifier(name) == name


@pytest.mark.parametrize("name", ["layer.0.weight", "encoder.layer.11.attention.self.query.weight", "3x3.w", "w"])
def test_path_parts_join_to_the_name_when_it_is_a_path_of_torch(name):
    assert ".".join(path_parts(name)) == name


@given(texts)
@settings(max_examples=200, deadline=None)
@example("." * 500)
@example("a..b.")
@example("__class__.class.0.0a")
def test_path_parts_are_few_and_plain_when_text_is_anything(text):
    parts = path_parts(text)
    assert 1 <= len(parts) <= 24
    assert all(re.fullmatch(r"[A-Za-z0-9_]+", part) and len(part) <= LONGEST for part in parts)
    assert all(is_safe_in_code(part) for part in parts)


def test_long_texts_stay_apart_when_they_differ_at_the_end():
    assert identifier("n" * 10_000 + "1") != identifier("n" * 10_000 + "2")


def test_namespace_gives_each_name_once_when_texts_meet_in_one_identifier():
    names = Namespace({"taken"})
    given_out = [names.claim(text) for text in ("a.b", "a_b", "a/b", "a_b_1", "a b", "taken", "taken_1")]
    assert given_out == ["a_b", "a_b_1", "a_b_2", "a_b_1_1", "a_b_3", "taken_1", "taken_1_1"]
    assert all(map(names.holds, given_out))


@pytest.mark.parametrize(
    "name", [n for n in NAMES if is_safe_in_code(n) and "." not in n and not hasattr(nn.Module, n)]
)
def test_safe_names_are_read_as_they_are_when_fx_generates_code(name):
    module, graph = nn.Module(), fx.Graph()
    if name in vars(module) or name.startswith("__"):
        pytest.skip("torch takes no such attribute")
    module.register_buffer(name, torch.ones(2))
    graph.output(graph.get_attr(name))
    if name in dir(fx.GraphModule(nn.Module(), fx.Graph())):
        return
    assert torch.equal(fx.GraphModule(module, graph)(), torch.ones(2))


def test_no_payload_is_safe_when_it_could_leave_its_string():
    assert not any(is_safe_in_code(name) for name in PAYLOADS if '"' in name or "\n" in name or "\r" in name)


def test_safe_paths_rename_only_what_is_not_safe_when_siblings_have_the_names():
    paths = ["a_b.w", 'a"b.w', 'a"b.class', "block.0.weight", "a\nb", 'block.0."']
    found = safe_paths(paths)
    assert [found[path] for path in ("a_b.w", "block.0.weight")] == ["a_b.w", "block.0.weight"]
    assert found['a"b.w'] == "a_b_1.w" and found['a"b.class'] == "a_b_1._class"
    assert len(set(found.values())) == len(paths) and all(map(is_safe_in_code, found.values()))


@given(texts)
@settings(max_examples=200, deadline=None)
def test_printable_text_cannot_act_when_text_is_anything(text):
    shown = printable(text)
    assert shown.isprintable() and (shown == text or not text.isprintable())


def test_printable_leaves_the_middle_out_when_text_is_long():
    assert printable("a" * 50 + "b" * 50, 10) == "aaaaa...bbbbb"


def test_near_names_are_short_and_printable_when_names_are_hostile():
    text = near("n" * 10_000, NAMES)
    assert text.isprintable() and len(text) < 600
