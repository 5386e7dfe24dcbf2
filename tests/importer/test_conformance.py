"""A fixed part of ONNX's single-node cases: the first two of every operator."""

from collections import Counter

import pytest

from laurel_graph.tools.conformance.cases import PASSED, REFUSED, WRONG, case_operator, node_cases, run_case, summary

REFUSED_OPERATORS = {
    "ImageDecoder", "OptionalGetElement", "QLinearConv", "QLinearMatMul", "RegexFullMatch", "StringConcat",
    "StringNormalizer", "StringSplit", "TfIdfVectorizer", "Scan",
}  # fmt: skip
"""Strings, images and integer arithmetic; Scan's first case is operator set 8's."""


@pytest.fixture(scope="module")
def outcomes():
    seen = Counter()
    chosen = []
    for case in node_cases(expanded=False):
        op = case_operator(case)
        if seen[op] < 2:
            seen[op] += 1
            chosen.append(case)
    return [run_case(case) for case in chosen]


def test_conformance_has_no_wrong_value_when_first_cases_of_every_operator_run(outcomes):
    assert [o for o in outcomes if o.status == WRONG] == []


def test_conformance_refuses_only_known_operators_when_first_cases_of_every_operator_run(outcomes):
    refused = {o.op for o in outcomes if o.status == REFUSED and "::" not in o.op}
    assert refused <= REFUSED_OPERATORS | {"Cast", "CastLike"}
    assert all(o.detail for o in outcomes if o.status == REFUSED)


def test_summary_counts_every_outcome_once_when_grouped_by_operator(outcomes):
    report = summary(outcomes)
    assert report["cases"] == len(outcomes) == sum(row["cases"] for row in report["ops"])
    assert report["cases"] == report[PASSED] + report[REFUSED] + report[WRONG]
