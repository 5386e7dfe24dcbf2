"""The matrix of runtimes: its judgement, and the part of it whose runtimes are in the test environment."""

import importlib.util

import onnx
import pytest
from deploy_models import feeds_of
from models import token_net

from laurel_graph.runtime import library_path
from laurel_graph.tools.compatibility.forms import FORMS, write_forms
from laurel_graph.tools.compatibility.matrix import (
    CRASHED,
    REFUSED,
    RIGHT,
    WRONG,
    Cell,
    broken,
    census_table,
    sentence,
    table,
    try_runtime,
    worse,
)
from laurel_graph.tools.compatibility.networks import Network
from laurel_graph.tools.compatibility.runtimes import RUNTIMES, ask, version_of

RUNTIME = {runtime.key: runtime for runtime in RUNTIMES}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("forms")
    model = token_net(20)
    onnx.save(model, folder / "base.onnx")
    return write_forms(folder / "base.onnx", folder), Network(feeds_of(model), 1e-4)


def verdicts(key, files):
    return {cell.form: cell.verdict for cell in try_runtime(RUNTIME[key], "tokens", *files)}


def test_onnxruntime_runs_every_form_right(files):
    assert verdicts("onnxruntime", files) == dict.fromkeys(FORMS, RIGHT)


@pytest.mark.skipif(library_path() is None, reason="the library of kernels is not built")
def test_onnxruntime_runs_every_form_right_with_the_kernels(files):
    assert verdicts("onnxruntime-kernels", files) == dict.fromkeys(FORMS, RIGHT)


def test_onnx_reference_runs_every_form_right_that_is_onnx(files):
    assert verdicts("reference", files) == dict.fromkeys(FORMS[:-1], RIGHT)


@pytest.mark.parametrize(("key", "module"), [("openvino", "openvino"), ("opencv", "cv2"), ("tract", "tract")])
def test_portable_forms_run_where_functions_are_unknown(key, module, files):
    if importlib.util.find_spec(module) is None:
        pytest.skip(f"needs {module}")
    found = verdicts(key, files)
    assert found["transformed"] in (REFUSED, CRASHED)
    if found["original"] == RIGHT:
        assert found["transformed --portable"] == found["deployed --portable"] == RIGHT


def test_a_form_that_computes_something_else_is_wrong(files):
    paths, network = files
    swapped = {**paths, "deployed": paths["original"]}
    found = {cell.form: cell.verdict for cell in try_runtime(RUNTIME["onnxruntime"], "tokens", swapped, network)}
    assert found["deployed"] == WRONG and found["transformed"] == RIGHT


def test_a_worker_that_dies_is_started_again_behind_the_file_it_died_over(files, tmp_path):
    paths, network = files
    dying = tmp_path / "python"
    dying.write_text(
        '#!/bin/sh\ncase "$2" in *) cat > ' + str(tmp_path / "jobs") + ";; esac\n"
        'echo \'{"version": "1"}\'\n'
        "grep -q base.onnx " + str(tmp_path / "jobs") + " && kill -11 $$\n"
        'echo \'{"refused": "no"}\'\n'
    )
    dying.chmod(0o755)
    answers = ask(RUNTIME["reference"], [paths["original"], paths["deployed"]], network.feeds, str(dying))
    assert [answer.crashed for answer in answers] == [True, False]
    assert answers[1].refused == "no"


def test_a_runtime_that_is_not_there_has_no_version(tmp_path):
    assert version_of(RUNTIME["reference"], str(tmp_path / "no-python")) == ""


def test_what_got_worse_and_what_is_broken_is_named():
    cells = [
        Cell("r", "m", "original", RIGHT),
        Cell("r", "m", "transformed", REFUSED, "no"),
        Cell("r", "m", "transformed --portable", CRASHED, "ended"),
        Cell("r", "m", "deployed", WRONG, "1e0"),
        Cell("s", "m", "original", REFUSED, "no"),
        Cell("s", "m", "deployed --portable", REFUSED, "no"),
    ]
    assert [line.split(":")[0] for line in broken(cells)] == ["r, m, transformed --portable", "r, m, deployed"]
    stored = {"r": {"m": {"transformed": RIGHT, "original": RIGHT}}, "s": {"m": {"original": REFUSED}}}
    assert [line.split(":")[0] for line in worse(cells, stored)] == ["r, m, transformed"]
    text = table(cells, {"r": "R 1", "s": "S 2", "t": "T: absent"})
    assert "| R 1 | right | refused | crashed | wrong | – | – |" in text and "T: absent" in text


def test_the_sentence_of_a_refusal_is_short_and_holds_no_path():
    text = "Exception from src/a/b/c.cpp:1:\nFailed on Laurel_RW in /tmp/x/model.onnx: " + "a" * 300
    assert sentence(text).startswith("Failed on Laurel_RW in model.onnx: aaa") and len(sentence(text)) == 160


def test_the_census_counts_what_a_form_adds(files):
    rows = census_table({"tokens": files[0]}).splitlines()
    assert len(rows) == 5
    for row in rows[2:]:
        cells = [cell.strip() for cell in row.split("|")[2:-1]]
        assert cells[0] == "as the original" and cells[1] == "ai.laurel"
        assert "ai.laurel" not in cells[2] and "ai.laurel" not in cells[4]
