"""Sums of symbols, and what they are pinned to."""

import pytest

from laurel_graph.samples.dim_formula import parsed
from laurel_graph.samples.sizes import Sizes, exact_quotient, plus, scaled, symbol


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("past_sequence_length + 1", plus(symbol("past_sequence_length"), 1)),
        ("a + b", plus(symbol("a"), symbol("b"))),
        ("2*s0 + s1 - 3", plus(plus(scaled(symbol("s0"), 2), symbol("s1")), -3)),
        ("batch-size", symbol("batch-size")),
        ("a*b", symbol("a*b")),
        ("floor(L/2 + 1)", symbol("floor(L/2 + 1)")),
    ],
)
def test_name_of_a_dim_is_a_sum_when_it_reads_as_one(text, expected):
    assert parsed(text, symbol) == expected


def told(*names, past=()):
    sizes = Sizes()
    for name in names:
        sizes.declare(name)
    sizes.past.update(past)
    return sizes


def test_total_is_a_sum_when_cache_and_tokens_make_it():
    sizes = told("seq", "total", "past", past=["past"])
    sizes.equal(symbol("total"), plus(symbol("past"), symbol("seq")))
    sizes.solve()
    sizes.wish("past", 0)
    sizes.wish("seq", 5)
    assert sizes.value(symbol("total")) == 5
    assert sizes.holds()


def test_cache_is_not_pinned_to_nothing_when_one_branch_has_none():
    sizes = told("seq", "total", "past", past=["past"])
    sizes.equal(symbol("total"), symbol("seq"))  # the branch without a cache
    sizes.equal(symbol("total"), plus(symbol("past"), symbol("seq")))
    sizes.solve()
    sizes.wish("past", 7)
    sizes.wish("seq", 1)
    assert sizes.value(symbol("total")) == 8


def test_tokens_give_way_when_the_total_is_given():
    sizes = told("seq", "total", "past", past=["past"])
    sizes.wish("total", 20)
    sizes.equal(symbol("total"), plus(symbol("past"), symbol("seq")))
    sizes.solve()
    sizes.wish("past", 6)
    assert sizes.value(symbol("seq")) == 14


def test_product_pins_both_sides_when_a_picture_is_square():
    sizes = told("h", "w")
    patches = [sizes.window(symbol(side), -16, 16) for side in ("h", "w")]
    sizes.equal(plus(sizes.product(patches), 1), 197)
    assert [sizes.value(symbol(side)) for side in ("h", "w")] == [224, 224]


def test_window_does_not_hold_when_nothing_is_left_of_it():
    sizes = told("t")
    sizes.window(symbol("t"), -10, 5)
    sizes.wish("t", 4)
    assert not sizes.holds()


def test_limit_does_not_hold_when_a_sum_is_beyond_it():
    sizes = told("past", "seq")
    sizes.limit(plus(symbol("past"), symbol("seq")), 10)
    sizes.wish("past", 6)
    sizes.wish("seq", 4)
    assert sizes.holds()
    sizes.limit(plus(symbol("past"), symbol("seq")), 9)
    assert not sizes.holds()


def test_quotient_is_unknown_when_it_is_no_whole_number():
    assert exact_quotient(plus(scaled(symbol("a"), 4), 8), 4) == plus(symbol("a"), 2)
    assert exact_quotient(plus(symbol("a"), 8), 4) is None
    assert exact_quotient(7, 2) is None
