"""The contract of a pass: composition, facts, options, invariants, the trace, passes of a user's own."""

import json
import sys
from dataclasses import FrozenInstanceError, dataclass, field

import numpy as np
import onnx
import pytest
from deploy_models import copy, largest_difference
from onnx import parser

import laurel_graph as lg
from laurel_graph.detection import Detection
from laurel_graph.errors import ConfigError, LaurelError, ModelError, NoResidualError, RewriteError
from laurel_graph.opset.schema import read_specs
from laurel_graph.passes import Facts, FunctionPass, Pass, PassResult, Pipeline, known_passes, option, parse_pass
from laurel_graph.passes.facts import Reference, ValueTypes
from laurel_graph.passes.files import run_on_file
from laurel_graph.passes.invariants import INVARIANTS, Invariant, register_invariant
from laurel_graph.passes.registry import as_pass, pass_class
from laurel_graph.passes.select import Selection
from laurel_graph.passes.standard.changing import Export, Head, Insert, Remove
from laurel_graph.passes.standard.comparing import Verify
from laurel_graph.passes.standard.finding import Detect, Select
from laurel_graph.passes.standard.placing import Place, Try
from laurel_graph.passes.standard.serving import Absorb, Fold, Fuse, Mark
from laurel_graph.variants.registry import load_plugin

TEXT = """<ir_version: 8, opset_import: ["" : 17], producer_name: "hand">
mlp (float[N, 8] x) => (float[N, 8] y)
<float[8, 8] w0, float[8, 8] w1> {
  h = MatMul (x, w0)
  r = Relu (h)
  first = Add (x, r)
  z = MatMul (first, w1)
  y = Add (first, z)
}"""


def mlp():
    model = parser.parse_model(TEXT)
    rng = np.random.default_rng(0)
    del model.graph.initializer[:]
    for name in ("w0", "w1"):
        array = rng.normal(0, 0.3, (8, 8)).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    del model.graph.value_info[:]
    return model


def draw(model):
    """Gives every LAuReL tensor other numbers, as training does."""
    rng = np.random.default_rng(1)
    for tensor in model.graph.initializer:
        if tensor.name.startswith("laurel."):
            array = rng.uniform(0.5, 1.5, tuple(tensor.dims)).astype(np.float32)
            tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
    return model


def test_every_pass_of_the_package_has_a_name_a_text_and_options_with_descriptions():
    from laurel_graph.passes.options import options_of

    for name in known_passes():
        kind = pass_class(name)
        assert kind.name == name and kind().text.endswith("."), name
        assert all(each.text for each in options_of(kind).values()), name
        assert set(kind.requires) | set(kind.ensures) <= set(INVARIANTS), name


def test_a_pass_is_frozen():
    with pytest.raises(FrozenInstanceError):
        Fuse().portable = True


def test_insert_detects_and_selects_by_itself_and_takes_what_stands_before_it():
    alone, after = mlp(), mlp()
    config = lg.LaurelConfig("lr", rank=2)
    result = Pipeline([Insert(config)]).run(alone)
    assert result.changed and result.report.counters["insert.sites"] == 2
    Pipeline([Detect(), Select(config), Insert(lg.LaurelConfig("rw"))]).run(after)
    assert alone == after
    assert alone == lg.transform(mlp(), config).model


def test_a_detection_made_before_is_taken_and_not_made_again(monkeypatch):
    from laurel_graph.passes.detect import rule

    found = lg.inspect(mlp())
    monkeypatch.setattr(rule, "detect", lambda view: pytest.fail("detected again"))
    model = mlp()
    result = Pipeline([Detect(), Insert()]).run(model, Facts(found))
    assert result.found(Detection) is found and len(read_specs(model)) == 2


def test_facts_about_the_graph_go_when_it_changes_and_others_stay():
    model = mlp()
    reference = Reference(copy(model))
    result = Pipeline([Detect(), Insert()]).run(model, Facts(reference))
    assert result.found(Detection) is not None and result.found(ValueTypes) is not None
    assert result.facts.get(Reference) is reference
    assert Pipeline([Detect(), FunctionPass(copy)]).run(mlp()).facts.get(Detection) is not None  # nothing changed
    renamed = Pipeline([Detect(), FunctionPass(lambda model: setattr(model, "doc_string", "new"))])
    assert renamed.run(mlp()).facts.get(Detection) is None


def test_deploying_is_folding_fusing_and_marking():
    trained = draw(lg.transform(mlp(), lg.LaurelConfig("rw+lr", rank=2)).model)
    deployed, by_hand = copy(trained), copy(trained)
    from laurel_graph.passes.deploy.deploy import deploy

    report = deploy(deployed)
    result = Pipeline([Fold(), Fuse(), Mark()]).run(by_hand)
    assert deployed == by_hand
    assert [site.site for site in report.fold.sites] == [site.site for site in result.steps[0].report.sites]
    assert largest_difference(trained, deployed) < 2e-5


def test_the_three_ways_are_pipelines_of_these_passes():
    from laurel_graph.passes import recipes

    ways = {
        recipes.transforming(lg.LaurelConfig()): ["detect", "select", "insert"],
        recipes.placing(lg.LaurelConfig(), False, True, False): ["place", "insert", "try"],
        recipes.placing(lg.LaurelConfig(), False, True, False, True): ["place", "insert", "inline", "try"],
        recipes.deploying(compare=Verify()): ["fold", "fuse", "mark", "verify"],
        recipes.removing(): ["remove"],
    }
    for pipeline, names in ways.items():
        assert [each.name for each in pipeline.passes] == names


def test_a_pass_of_ones_own_runs_between_insert_and_fold():
    model, seen = mlp(), []

    def double(given):
        """Doubles A."""
        seen.append(sorted(node.op_type for node in given.graph.node))
        return draw(copy(given))

    result = Pipeline([Insert(lg.LaurelConfig("rw+lr", rank=2)), FunctionPass(double), Fold(), Fuse()], check=True).run(
        model
    )
    assert "Laurel_RW_LR" in seen[0] and result.steps[1].changed and result.steps[1].ran.text == "Doubles A."
    assert result.graph is not model
    assert not any("_RW" in node.op_type for node in result.graph.graph.node)


@dataclass(frozen=True)
class Rename(Pass, name="rename", ensures=("outputs",)):
    """Renames the output."""

    to: str = option("other", "the new name")

    def run(self, graph, facts=Facts()):
        graph.graph.node[-1].output[0] = graph.graph.output[0].name = self.to
        return PassResult(graph, True)


def test_an_invariant_is_checked_when_asked_and_only_then():
    assert Pipeline([Rename()]).run(mlp()).changed
    with pytest.raises(RewriteError, match=r"'rename' breaks 'outputs'.*'y'"):
        Pipeline([Rename()], check=True).run(mlp())


def broken(what):
    model = lg.transform(mlp(), "rw").model if what == "records" else mlp()
    graph = model.graph
    if what == "unique-names":
        graph.node.add().CopyFrom(graph.node[0])
    elif what == "order":
        node = copy_node(graph.node[0])
        del graph.node[0]
        graph.node.append(node)
    elif what == "outputs":
        graph.output[0].type.tensor_type.elem_type = onnx.TensorProto.DOUBLE
    elif what == "dims":
        graph.input[0].type.tensor_type.shape.dim[0].dim_value = 3
    elif what == "metadata":
        model.producer_name = ""
    else:
        node = next(node for node in graph.node if node.op_type == "Laurel_RW")
        node.op_type, node.domain = "Add", ""
        del node.input[2:]
    return model


def copy_node(node):
    new = onnx.NodeProto()
    new.CopyFrom(node)
    return new


@pytest.mark.parametrize("name", ["unique-names", "order", "outputs", "dims", "metadata", "records"])
def test_every_invariant_holds_for_a_model_and_says_where_it_does_not(name):
    each = INVARIANTS[name]
    before = lg.transform(mlp(), "rw").model if name == "records" else mlp()
    assert each.fault(before, each.note(before)) == ""
    assert each.fault(broken(name), each.note(before))


def test_an_invariant_of_ones_own_is_known_by_its_name():
    small = Invariant("small-for-a-test", "fewer than five nodes", lambda g, _: "" if len(g.graph.node) < 5 else "big")
    try:
        assert register_invariant(small) is small
        with pytest.raises(LaurelError, match="there already"):
            register_invariant(Invariant("small-for-a-test", "other", lambda g, _: ""))

        @dataclass(frozen=True)
        class Small(Pass, name="small", requires=("small-for-a-test",)):
            """Does nothing."""

            def run(self, graph, facts=Facts()):
                return PassResult(graph, False)

        with pytest.raises(RewriteError, match="requires 'small-for-a-test'"):
            Pipeline([Small()], check=True).run(mlp())
    finally:
        del INVARIANTS["small-for-a-test"]


def test_the_trace_shows_the_graph_before_and_after_and_what_changed_site_by_site(tmp_path):
    Pipeline([Insert(lg.LaurelConfig("rw")), Fold()], trace=tmp_path / "trace").run(mlp())
    names = sorted(path.name for path in (tmp_path / "trace").iterdir())
    assert names == [f"0{i}-{p}.{s}" for i, p in ((1, "insert"), (2, "fold")) for s in ENDINGS]
    diff = (tmp_path / "trace" / "01-insert.diff").read_text()
    assert "-first = Add(x, r)" in diff and "+first = ai.laurel.Laurel_RW(x, r, " in diff
    report = json.loads((tmp_path / "trace" / "02-fold.json").read_text())
    assert [site["site"] for site in report["sites"]] == ["res_first", "res_y"] and report["counters"]["folded"] == 2
    after, before = ((tmp_path / "trace" / name).read_text() for name in ("01-insert.after.txt", "02-fold.before.txt"))
    assert after == before


ENDINGS = ("after.txt", "before.txt", "diff", "json")


def test_verify_compares_in_memory_with_the_graph_that_came_in():
    model = mlp()
    result = Pipeline([Insert(), Fold(), Fuse(), Verify()]).run(model, Facts(Reference(copy(model))))
    assert result.steps[-1].report.counters["sites"] >= 2
    with pytest.raises(LaurelError, match="differs"):
        spoil = FunctionPass(draw)
        Pipeline([Insert(), spoil, Verify()]).run(mlp(), Facts(Reference(mlp())))
    with pytest.raises(ModelError, match="no original"):
        Pipeline([Verify()]).run(mlp())


def test_a_copy_of_the_original_is_kept_where_the_last_pass_compares_alone(tmp_path):
    onnx.save(mlp(), tmp_path / "m.onnx")
    for passes, kept in (((Place(), Insert(), Try()), False), ((Insert(), Verify()), True), ((Insert(),), False)):
        result = run_on_file(Pipeline(passes), tmp_path / "m.onnx", tmp_path / "out.onnx")
        assert (result.facts.get(Reference) is not None) == kept


def test_nothing_follows_what_looks_at_the_written_file():
    with pytest.raises(ConfigError, match="put it last"):
        Pipeline([Verify(), Fold()])
    with pytest.raises(ConfigError, match="holds passes"):
        Pipeline([print])


def test_remove_and_add_head_are_passes():
    model = mlp()
    result = Pipeline([Insert(), Remove()]).run(model)
    assert model == mlp() and [site.change for site in result.steps[1].report.sites] == ["removed"] * 2
    result = Pipeline([Head(classes=3, value="first")], check=True).run(model)
    assert [value.name for value in model.graph.output] == ["y", "head.logits"]
    with pytest.raises(ConfigError, match="classes = 0"):
        Head().run(mlp())


def test_absorb_lets_the_map_of_a_projection_take_the_low_rank_part_in():
    model = parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 17]>
        net (float[N, 8] x) => (float[N, 8] y) {
          s = MatMul (x, w0)  h = MatMul (x, w1)  r = Relu (h)  y = Add (s, r)  }"""
    )
    for tensor in mlp().graph.initializer:
        model.graph.initializer.append(tensor)
    trained = draw(lg.transform(model, lg.LaurelConfig("lr", rank=2, include=("projection",))).model)
    absorbed = copy(trained)
    result = Pipeline([Absorb()], check=True).run(absorbed)
    assert result.report.counters == {"absorb.absorbed": 1, "absorb.left": 0}
    assert not any(node.domain for node in absorbed.graph.node)
    assert largest_difference(trained, absorbed) < 1e-5


def test_the_same_passes_run_on_a_torch_graph(tmp_path):
    import torch

    class Block(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.a = torch.nn.Linear(8, 8)

        def forward(self, x):
            return x + torch.relu(self.a(x))

    x = torch.ones(2, 8)
    module = torch.fx.symbolic_trace(torch.nn.Sequential(Block(), Block()).eval())
    expected = module(x)
    from laurel_graph.passes.facts import Example

    result = Pipeline([Insert(lg.LaurelConfig("rw")), Export(), Fold(), Fuse(), Verify()], check=True).run(
        module, Facts(Example((x,)))
    )
    assert result.steps[0].report.counters["sites"] == 2
    onnx.save(result.graph, tmp_path / "m.onnx")
    (name,) = [value.name for value in lg.session(tmp_path / "m.onnx").get_inputs()]
    served = lg.session(tmp_path / "m.onnx").run(None, {name: x.numpy()})[0]
    assert np.allclose(served, expected.detach().numpy(), atol=1e-5)
    with pytest.raises(ConfigError, match="'fold' takes a ModelProto, found a GraphModule"):
        Pipeline([Fold()]).run(module)


def test_options_are_read_by_the_types_of_the_fields():
    made = parse_pass("insert:variant=rw+lr,rank=8,sites=a.*,sites=b,overrides=a.1=off,overrides=a.2=lr:2,per-channel")
    assert made == Insert(
        lg.LaurelConfig(
            "rw+lr",
            rank=8,
            sites=("a.*", "b"),
            per_channel=True,
            overrides={"a.1": {"off": True}, "a.2": {"variant": "lr", "rank": 2}},
        )
    )
    assert parse_pass("fuse:portable=no") == Fuse() and parse_pass("fuse:portable") == Fuse(portable=True)
    assert parse_pass("verify:tolerance=1e-3,size=n=3,size=m=2,seed=4") == Verify(
        tolerance=1e-3, size=("n=3", "m=2"), seed=4
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("insrt", ["'insrt'", "insert"]),
        ("insrt:rank=3", ["'insrt'", "insert"]),
        ("no_such_module:thing", ["'no_such_module'"]),
        ("json:nothing", ["json", "'nothing'"]),
        ("json:dumps:indent=2", ["takes no options", "indent=2"]),
        ("json:__name__", ["is a str", "expected a Pass"]),
        ("insert:rnak=3", ["'rnak'", "rank"]),
        ("absorb:rank=3", ["'absorb'", "It has none"]),
        ("insert:rank=three", ["rank = 'three'", "a whole number"]),
        ("insert:rank=", ["rank = ''", "a whole number"]),
        ("insert:rank=1,rank=2", ["'rank'", "twice"]),
        ("insert:rank=0", ["rank = 0", "at least 1"]),
        ("insert:variant=zz", ["variant = 'zz'", "rw, lr, pa"]),
        ("insert:overrides=a", ["overrides", "GLOB=off"]),
        ("fuse:portable=perhaps", ["portable = 'perhaps'", "yes or no"]),
        ("verify:tolerance=small", ["tolerance = 'small'", "a number"]),
        ("mark:target=abacus", ["abacus", "cpu"]),
    ],
)
def test_what_cannot_be_read_is_said_in_one_sentence(text, words):
    with pytest.raises(LaurelError) as caught:
        parse_pass(text)
    assert all(word in str(caught.value) for word in words), caught.value


def test_a_pass_of_ones_own_that_fails_is_named_with_its_line():
    def lost(model):
        raise KeyError("nothing")

    def quits(model):  # a program that ended here would tell its shell that all went well
        sys.exit(0)

    def unsound(model):
        del model.graph.node[0]

    for function, error, words in (
        (lost, RewriteError, "'lost' failed with KeyError.*test_base.py"),
        (quits, RewriteError, "'quits' failed with SystemExit.*test_base.py"),
        (unsound, ModelError, "'unsound' left a graph that is not sound"),
        (lambda model: 3, ModelError, "returned int: expected a ModelProto"),
    ):
        with pytest.raises(error, match=words):
            Pipeline([as_pass(function, function.__name__)]).run(mlp())


def test_a_module_that_ends_the_program_when_imported_is_named(tmp_path, monkeypatch):
    (tmp_path / "quits_at_import.py").write_text("import sys\nsys.exit(0)\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match="'quits_at_import' cannot be imported \\(SystemExit"):
        parse_pass("quits_at_import:anything")
    with pytest.raises(ConfigError, match="plugin 'quits_at_import' cannot be imported: SystemExit"):
        load_plugin("quits_at_import")


def test_errors_of_our_passes_come_through_a_pipeline():
    with pytest.raises(NoResidualError):
        Pipeline([Insert(lg.LaurelConfig(include=("projection",)))]).run(mlp())
    with pytest.raises(RewriteError, match="no LAuReL residual"):
        Pipeline([Fold()]).run(mlp())
    with pytest.raises(RewriteError, match="deployed already"):
        Pipeline([Insert(), Fold(), Mark(), Fold()]).run(mlp())


def test_passes_of_installed_packages_are_found_by_their_entry_points(tmp_path, monkeypatch):
    from laurel_graph.passes import registry

    info = tmp_path / "other_package-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: other-package\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        f"[{registry.GROUP}]\nwink = other_package:wink\nlost = other_package:lost\n"
    )
    (tmp_path / "other_package.py").write_text("def wink(model):\n    model.doc_string = 'wink'\n")
    monkeypatch.syspath_prepend(tmp_path)
    registry._foreign.cache_clear()
    try:
        assert known_passes()["wink"] == "other_package:wink"
        model = mlp()
        assert Pipeline([parse_pass("wink")]).run(model).changed and model.doc_string == "wink"
        with pytest.raises(ConfigError, match="'lost' cannot be loaded from 'other_package:lost'"):
            parse_pass("lost")
    finally:
        registry._foreign.cache_clear()


def test_a_selection_is_a_fact_that_a_pass_of_ones_own_may_change():
    @dataclass(frozen=True)
    class First(Pass, name="first"):
        """Keeps the first site alone."""

        kept: int = field(default=1, metadata={"help": "how many"})

        def run(self, graph, facts=Facts()):
            chosen = facts.get(Selection)
            return PassResult(graph, False, facts=Facts(Selection(chosen.plans[: self.kept], chosen.skipped)))

    model = mlp()
    Pipeline([Select(), as_pass(First, "first", "kept=1"), Insert()]).run(model)
    assert list(read_specs(model)) == ["res_first"]


def test_a_config_is_hashable_and_may_be_a_variant_or_a_mapping():
    config = lg.LaurelConfig("rw", overrides={"a": {"off": True}})
    assert {config: 1}[lg.LaurelConfig("rw", overrides={"a": {"off": True}})] == 1
    assert lg.transform(mlp(), "rw").model == lg.transform(mlp(), {"variant": "rw"}).model
    for wrong, words in ((mlp(), "ModelProto"), (3, "int"), ({"varient": "rw"}, "varient"), ("zz", "zz")):
        with pytest.raises(ConfigError, match=words):
            lg.transform(mlp(), wrong)
    with pytest.raises(ModelError, match=r"a ModelProto or a gs\.Graph, found a int"):
        lg.deploy(3)


class _Silent(Exception):
    def __str__(self):
        raise ValueError("no text")


class _Loud(Exception):
    def __str__(self):
        return "red \x1b[31m and\nnew lines"


@pytest.mark.parametrize(
    ("error", "words"), [(_Silent(), "cannot say what it is"), (_Loud(), r"red \\x1b\[31m and new")]
)
def test_an_error_of_a_users_own_is_told_whatever_its_text_does(error, words):
    def failing(model):
        raise error

    with pytest.raises(RewriteError, match=words):
        Pipeline((FunctionPass(failing),)).run(mlp())
