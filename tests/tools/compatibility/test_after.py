"""What other tools leave of our files: the tools of the test environment on one small model, and tools that do harm."""

import numpy as np
import onnx
import pytest
from deploy_models import feeds_of
from models import token_net
from onnx import numpy_helper

from laurel_graph.tools.compatibility.after import FAILED, FORMS, SAYS, SILENT, WORKS, WRONG, table, try_model
from laurel_graph.tools.compatibility.changers import CHANGERS, Changer

BY_NAME = {changer.name: changer for changer in CHANGERS}


def outcomes_of(changer, folder):
    model = token_net(17)
    onnx.save(model, folder / "base.onnx")
    found = list(try_model("tokens", folder / "base.onnx", feeds_of(model), folder, [changer]))
    assert {outcome.form for outcome in found} == set(FORMS)
    return {(outcome.form, outcome.step): outcome for outcome in found}


@pytest.mark.parametrize("name", ["onnx-graphsurgeon", "onnx_ir", "onnx.compose with prefix"])
def test_tools_that_drop_records_leave_files_that_work(name, tmp_path):
    found = outcomes_of(BY_NAME[name], tmp_path)
    assert {outcome.verdict for (form, _), outcome in found.items() if form != "deployed"} == {WORKS}
    deployed = {step: outcome.verdict for (form, step), outcome in found.items() if form == "deployed"}
    assert deployed["result"] == WORKS and deployed["remove"] == deployed["deploy"] == SAYS


@pytest.mark.parametrize("name", ["onnx.inliner", "ORT offline optimisation"])
def test_tools_that_write_sites_out_leave_right_files_of_which_every_command_says_so(name, tmp_path):
    found = outcomes_of(BY_NAME[name], tmp_path)
    assert {found[form, "result"].verdict for form in FORMS} == {WORKS}
    for step in ("remove", "finetune", "apply", "deploy"):
        assert found["tuned", step].verdict == SAYS
        assert "a tool inlined, fused or quantised them" in found["tuned", step].detail
    assert "no nodes of ai.laurel any more" in found["tuned", "inspect"].detail


def harm(source, output, _):
    """Changes what was trained, and leaves other models alone."""
    model = onnx.load(source)
    for tensor in model.graph.initializer:
        if tensor.name.startswith("laurel."):
            tensor.CopyFrom(numpy_helper.from_array(np.zeros_like(numpy_helper.to_array(tensor)), tensor.name))
    onnx.save(model, output)


def forget(source, output, _):
    """Writes the model as it was before anything was put in."""
    onnx.save(onnx.load(source.with_name("base.onnx")), output)


def test_a_result_that_is_wrong_is_found(tmp_path):
    found = outcomes_of(Changer("harm", harm), tmp_path)
    assert found["tuned", "result"].verdict == WRONG
    assert found["tuned", "apply"].verdict == WORKS  # the adapter brings the numbers back
    assert "| harm | tuned |" in table(list(found.values()))


def test_a_loss_without_a_word_is_found(tmp_path):
    found = outcomes_of(Changer("forget", forget), tmp_path)
    assert found["tuned", "result"].verdict == WRONG
    assert found["tuned", "inspect"].verdict == SILENT
    assert FAILED not in {outcome.verdict for outcome in found.values()}
