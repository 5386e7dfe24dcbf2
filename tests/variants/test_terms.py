"""Terms: what may be registered, what a config, an operator and a file make of them, and what is refused."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from onnx import TensorProto, helper

import laurel_graph as lg
from laurel_graph.config import SiteSpec
from laurel_graph.errors import AdapterError, ConfigError, ModelError, UnknownVariantError, VerificationError
from laurel_graph.opset.functions import attach, function
from laurel_graph.opset.schema import DOMAIN, Operator, read_specs
from laurel_graph.soundness import check
from laurel_graph.variants import TERMS, Option, Term, register, registry, terms_of
from laurel_graph.variants.check import check_term


@pytest.fixture(autouse=True)
def own_terms(monkeypatch):
    """Terms that a test registers are gone afterwards."""
    monkeypatch.setattr(registry, "_load_installed", lambda: None)
    before = dict(TERMS)
    yield
    TERMS.clear()
    TERMS.update(before)
    terms_of.cache_clear()


class Shift(Term):
    """branch + s·v, v = 0 at the start."""

    name = "shift"
    tensors = {"v": ("D",)}
    options = {"size": Option(0.5), "mode": Option("plus", valid=("plus", "minus")), "count": Option(2)}

    def formula(self, skip, branch, at):
        sign = 1 if at.options["mode"] == "plus" else -1
        return skip, branch + sign * at.options["size"] * at["v"]

    def body(self, nodes, skip, branch, at):
        v = nodes.add("Mul", nodes.along_features(at["v"]), nodes.scalar(at.options["size"]))
        return skip, nodes.add("Add" if at.options["mode"] == "plus" else "Sub", branch, v)


@pytest.mark.parametrize("variant", ["rw", "lr", "pa", "rw+lr+pa"])
def test_own_terms_agree_with_themselves_when_checked(variant):
    assert check_term(variant, opsets=(17,)) < 1e-6


def test_term_goes_with_the_own_ones_when_registered():
    register(Shift)
    assert check_term("rw+lr+shift", {"mode": "minus"}, opsets=(9, 18)) < 1e-6


@pytest.mark.parametrize(
    ("fault", "part"),
    [
        ({"body": lambda self, nodes, skip, branch, at: (skip, branch)}, "function body"),
        ({"forward": lambda self, skip, branch, at: (skip, branch + 0 * at["v"])}, "v gets no gradient"),
        ({"start": lambda self, site, shapes, draw: {"v": np.ones(shapes["v"])}}, "start with the bits"),
        ({"forward": lambda self, skip, branch, at: (skip, branch + at["v"])}, "torch is"),
    ],
)
def test_term_is_refused_when_its_parts_differ(fault, part):
    register(type("Faulty", (Shift,), fault))
    with pytest.raises(VerificationError, match=part):
        check_term("shift", opsets=(17,))


@pytest.mark.parametrize(
    ("fault", "part"),
    [
        ({"name": "rw"}, "name = 'rw'"),
        ({"name": "with"}, "name = 'with'"),
        ({"name": "Up"}, "lower-case"),
        ({"tensors": {}}, "no tensors"),
        ({"tensors": {"alpha": ("D",)}}, "'alpha'"),
        ({"tensors": {"previous_3": ("D",)}}, "'previous_3'"),
        ({"tensors": {"v": ("E",)}}, "axes"),
        ({"tensors": {"v": (0,)}}, "axes"),
        ({"options": {"a_b": Option(1)}}, "a_b"),
        ({"options": {"a": Option("b c")}}, "letters and digits"),
        ({"earlier": -1}, "earlier"),
    ],
)
def test_term_cannot_be_registered_when_it_is_not_valid(fault, part):
    with pytest.raises(ConfigError, match=part):
        register(type("Faulty", (Shift,), fault))
    assert "shift" not in TERMS


def test_tensor_is_refused_when_modules_have_its_name():
    register(type("Faulty", (Shift,), {"tensors": {"forward": ("D",)}}))
    with pytest.raises(ConfigError, match="'forward'"):
        lg.LaurelResidual(SiteSpec("a", "shift", -1, 4, 2))


def test_terms_are_refused_together_when_both_take_earlier_activations_or_share_a_name():
    register(type("Deep", (Shift,), {"name": "deep", "earlier": None, "tensors": {"v": ("k+1",)}}))
    with pytest.raises(ConfigError, match="pa, deep"):
        lg.LaurelConfig(variant="pa+deep")
    register(Shift)
    with pytest.raises(ConfigError, match="'v'"):
        lg.LaurelConfig(variant="deep+shift")


def test_options_are_read_and_kept_when_given():
    register(Shift)
    config = lg.LaurelConfig(variant="SHIFT+rw", options={"size": "-1e-3", "mode": "minus"})
    assert config.variant == "rw+shift"
    assert dict(config.options) == {"mode": "minus", "size": -0.001}
    assert lg.LaurelConfig.from_json(config.to_json()) == config
    spec = config.spec_for("a.b", axis=1, width=8, ndim=4, dtype="float32", previous=2)
    assert SiteSpec.from_dict(spec.to_dict()) == spec and hash(spec)
    assert dict(spec.options) == {"count": 2, "mode": "minus", "size": -0.001}  # what a file says is whole
    operator = Operator.of(spec)
    assert operator.name == "Laurel_RW_shift_2d_with_count_2_mode_minus_size_m0p001"
    assert Operator.parse(operator.name) == operator
    assert operator.inputs == ("x", "f", "alpha", "beta", "v") and operator.variant == "rw+shift"


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"size": "big"}, "a number"),
        ({"mode": "times"}, "plus, minus"),
        ({"count": 1.5}, "an integer"),
        ({"nothing": 1}, "'nothing'"),
        (3, "a mapping"),
        ({"size": float("nan")}, "a number"),
    ],
)
def test_options_are_refused_when_not_valid(options, part):
    register(Shift)
    with pytest.raises(ConfigError, match=part):
        lg.LaurelConfig(variant="shift", options=options)


def test_options_are_refused_when_the_variant_has_none():
    with pytest.raises(ConfigError, match="no options"):
        lg.LaurelConfig(variant="rw", options={"size": 1.0})


def test_files_stay_as_they_were_when_no_term_has_options():
    assert "options" not in lg.LaurelConfig().to_json()
    assert "options" not in SiteSpec("a", "rw", -1, 4, 2).to_dict()


@pytest.mark.parametrize(
    "name",
    [
        "Laurel_shift",  # options are part of the name
        "Laurel_shift_with_count_2_mode_plus_size_big",
        "Laurel_shift_with_count_2_mode_plus",
        "Laurel_shift_shift_with_count_2_mode_plus_size_0p5",
        "Laurel_shift_P2_with_count_2_mode_plus_size_0p5",
        "Laurel_shift_Relu_with_count_2_mode_plus_size_0p5",
        "Laurel_lr",
        "Laurel_RW_P2",
        "Laurel_none",
    ],
)
def test_operator_is_unknown_when_its_name_is_none(name):
    register(Shift)
    assert Operator.parse(name) is None


def info(name):
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, 4])


def shifted_model():
    """x + f with the term's operator, as a transformed file has it."""
    op = Operator(further=("shift",), options=(("count", 2), ("mode", "plus"), ("size", 0.5)))
    node = helper.make_node(op.name, ["x", "f", "laurel.a.v"], ["y"], domain=DOMAIN)
    tensor = helper.make_tensor("laurel.a.v", TensorProto.FLOAT, [4], np.zeros(4))
    graph = helper.make_graph([node], "g", [info("x"), info("f")], [info("y")], [tensor])
    imports = [helper.make_opsetid("", 17), helper.make_opsetid(DOMAIN, 1)]
    model = helper.make_model(graph, opset_imports=imports, ir_version=8, functions=[function(op, 17)])
    model.metadata_props.add(key="laurel.sites", value=json.dumps([SiteSpec("a", "shift", -1, 4, 2).to_dict()]))
    return model


def test_tensors_of_terms_are_held_to_their_shapes_when_a_file_is_read():
    register(Shift)
    check(shifted_model())
    assert read_specs(shifted_model())["a"].variant == "shift"
    model = shifted_model()
    model.graph.initializer[0].CopyFrom(helper.make_tensor("laurel.a.v", TensorProto.FLOAT, [2, 2], np.zeros(4)))
    with pytest.raises(ModelError, match="its input v"):
        check(model)


def test_unknown_variant_is_named_with_the_way_to_register_it_when_a_file_has_it():
    register(Shift)
    model = shifted_model()
    del TERMS["shift"]
    terms_of.cache_clear()
    check(model)  # it runs by its function body, so it may be read
    with pytest.raises(UnknownVariantError, match=r"'shift'.*--plugin"):
        read_specs(model)
    with pytest.raises(UnknownVariantError, match=r"'shift'.*--plugin"):
        lg.import_onnx(model)
    with pytest.raises(ModelError, match=r"'shift'.*--plugin"):
        attach(model)


def test_unknown_variant_is_named_when_an_adapter_has_it(tmp_path):
    register(Shift)
    module = lg.LaurelResidual(SiteSpec("a", "shift", -1, 4, 2))
    lg.save_adapter(module, tmp_path / "a.safetensors")
    lg.load_adapter(module, tmp_path / "a.safetensors", check_base=False)
    other = lg.LaurelResidual(SiteSpec("a", "shift", -1, 4, 2, options={"size": 2.0}))
    with pytest.raises(AdapterError, match="options"):
        lg.load_adapter(other, tmp_path / "a.safetensors", check_base=False)
    del TERMS["shift"]
    terms_of.cache_clear()
    with pytest.raises(UnknownVariantError, match="'shift'"):
        lg.load_adapter(module, tmp_path / "a.safetensors", check_base=False)


PACKAGE = """
from laurel_graph.variants import Term, register

@register
class Installed(Term):
    name = "installed"
    tensors = {"v": ("D",)}
"""


def test_installed_package_has_its_variant_registered_when_its_name_is_first_asked_for(tmp_path):
    (tmp_path / "their_term.py").write_text(PACKAGE)
    for name, module in (("theirs", "their_term"), ("broken", "no_such_module")):
        folder = tmp_path / f"{name}-1.0.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (folder / "entry_points.txt").write_text(f"[laurel_graph.variants]\n{name} = {module}\n")
    script = (
        "import sys, laurel_graph as lg\n"
        "assert lg.LaurelConfig() and 'their_term' not in sys.modules\n"
        "assert lg.LaurelConfig(variant='installed').variant == 'installed'\n"
        "try:\n    lg.LaurelConfig(variant='gone')\n"
        "except lg.LaurelError as error:\n    assert 'entry point broken = no_such_module' in str(error), error\n"
        "else:\n    raise AssertionError\n"
    )
    paths = os.pathsep.join([str(tmp_path), *filter(None, sys.path)])
    subprocess.run([sys.executable, "-c", script], check=True, env={**os.environ, "PYTHONPATH": paths})


def test_operator_is_unknown_when_two_of_its_terms_share_a_tensor():
    for name in ("one", "two"):
        register(type("Same", (Shift,), {"name": name, "options": {}}))
    assert Operator.parse("Laurel_one") and Operator.parse("Laurel_two")
    assert Operator.parse("Laurel_one_two") is None
