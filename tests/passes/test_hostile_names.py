"""No name of a layer or a site runs, breaks or hides anything in a traced graph or an exported file."""

import copy
import io
import pickle
from dataclasses import replace

import onnx
import pytest
import torch
from hostile import NAMES, PAYLOADS, executed
from onnx import helper
from tolerance import assert_close
from torch import fx, nn

import laurel_graph as lg
from laurel_graph import LaurelConfig, LaurelError
from laurel_graph.adapters import adapter_of, read_adapter
from laurel_graph.config import SiteSpec
from laurel_graph.errors import ConfigError, ModelError
from laurel_graph.foreign_names import is_safe_in_code
from laurel_graph.opset.schema import read_specs
from laurel_graph.passes.detect.rule import detect
from laurel_graph.passes.pipeline import transform
from laurel_graph.passes.read_fx.capture import capture
from laurel_graph.passes.rewrite.fx import insert, remove
from laurel_graph.passes.select import select
from laurel_graph.torch_residual.module import ATTRIBUTES, freeze_base, laurel_modules

WIDTH = 8


def layer_names(names):
    """Those that torch takes for a submodule."""
    return [name for name in names if "." not in name and not hasattr(nn.Module(), name)]


class Net(nn.Module):
    """x + W x for each name, which is that of the layer; a layer that holds a layer of the same name every third."""

    def __init__(self, names):
        super().__init__()
        self.names = names
        for i, name in enumerate(names):
            layer = nn.Linear(WIDTH, WIDTH)
            if i % 3 == 2:
                outer = nn.Sequential()
                outer.add_module(name, layer)
                layer = outer
            self.add_module(name, layer)

    def forward(self, x):
        for name in self.names:
            x = x + getattr(self, name)(x)
        return x


class Exported(Net):
    """The same, but nothing that symbolic tracing can follow."""

    def forward(self, x):
        return super().forward(x) if x.shape[0] > 0 else x


def test_rewritten_module_computes_the_same_bits_when_layers_have_hostile_names():
    names = [*layer_names(NAMES)[::3], *layer_names(["graph", "code", "meta", "self", "class"])]
    model = Net(names)
    x = torch.randn(3, WIDTH)
    result = transform(model, LaurelConfig(variant="rw+lr", rank=2), (x,)).model
    saved = io.BytesIO()
    torch.save(result.state_dict(), saved)
    for one in (result, copy.deepcopy(result), pickle.loads(pickle.dumps(result))):
        assert torch.equal(one(x), model(x))
    assert len(laurel_modules(result)) == len(names)
    assert all(is_safe_in_code(name) for name in result.state_dict())
    kept = {n for n in model.state_dict() if is_safe_in_code(n) and n.split(".")[0] not in ATTRIBUTES}
    assert kept and kept <= set(result.state_dict())
    assert torch.equal(remove(result)(x), model(x)) and not executed()


def test_exported_file_computes_the_same_when_layers_have_hostile_names(tmp_path):
    model = Net(layer_names([*PAYLOADS[::3], "class", "self", "a\nb", "\u017felf"]))
    x = torch.randn(3, WIDTH)
    result = transform(model, LaurelConfig(variant="rw", weights="free"), (x,)).model
    lg.export_onnx(result, (x,), tmp_path / "net.onnx")
    assert_close(lg.import_onnx(tmp_path / "net.onnx")(x).detach().numpy(), model(x).detach().numpy())
    assert not executed()


@pytest.mark.parametrize("name", [PAYLOADS[0], 'a"b', "a\nb", "class", "\u202e"], ids=ascii)
def test_torch_export_is_refused_in_words_when_layers_have_hostile_names(name, tmp_path):
    x = torch.randn(3, WIDTH)
    for given in (lambda: transform(Exported([name]), None, (x,)), lambda: lg.export_onnx(Net([name]), (x,), "x.onnx")):
        with pytest.raises(ModelError, match="Rename it") as caught:
            given()
        assert str(caught.value).isprintable()
    assert not executed()


def test_traced_models_are_refused_when_their_code_holds_a_payload():
    x = torch.randn(3, WIDTH)
    model = Net([PAYLOADS[0]])
    for traced in (fx.symbolic_trace(model), torch.export.export(model, (x,))):
        with pytest.raises(ModelError, match="Rename it"):
            transform(traced, None, (x,))
    assert not executed()


class Plain(nn.Module):
    def __init__(self, blocks):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(blocks))

    def forward(self, x):
        for layer in self.layers:
            x = x + layer(x)
        return x


def rewritten(sites, variant="rw+lr+pa"):
    """A plain model whose sites have these names, its LAuReL parameters random; the model and an input."""
    torch.manual_seed(0)
    model, x = Plain(len(sites)), torch.randn(3, WIDTH)
    captured = capture(model, (x,))
    plans = select(detect(captured.view), LaurelConfig(variant=variant, rank=2)).plans
    plans = [replace(plan, spec=replace(plan.spec, site=site)) for plan, site in zip(plans, sites, strict=True)]
    insert(captured.module, plans)
    freeze_base(captured.module)
    for parameter in lg.trainable_parameters(captured.module).values():
        nn.init.normal_(parameter, std=0.1)
    return captured.module, x


def test_sites_have_modules_of_their_own_when_their_names_are_hostile():
    sites = [*NAMES[::3], "graph", "forward", "a.b", "a", "laurel", "res1.w"]
    module, x = rewritten(list(dict.fromkeys(sites)))
    assert set(laurel_modules(module)) == set(sites)
    assert all(
        is_safe_in_code(name) and name.split(".")[0].startswith(("laurel", "layers")) for name in module.state_dict()
    )
    for one in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert torch.equal(one(x), module(x))
    remove(module)
    assert not laurel_modules(module) and not executed()


def test_sites_go_through_file_import_and_adapter_when_their_names_are_hostile(tmp_path):
    sites = [
        *PAYLOADS[::2],
        "a.b",
        "a_b",
        "a/b",
        "a",
        "\0",
        "\u2028",
        "self",
        "class",
        "..",
        "n" * 10_000,
        "x.A",
        "*",
        "[ab]",
    ]
    module, x = rewritten(sites)
    lg.export_onnx(module, (x,), tmp_path / "net.onnx")
    assert list(read_specs(onnx.load(tmp_path / "net.onnx"))) == sites
    lg.save_adapter(module, tmp_path / "torch.safetensors")
    lg.save_adapter(tmp_path / "net.onnx", tmp_path / "onnx.safetensors")
    imported = lg.import_onnx(tmp_path / "net.onnx")
    assert list(laurel_modules(imported)) == sites
    wanted = module(x).detach().numpy()
    assert_close(imported(x).detach().numpy(), wanted)
    for parameter in lg.trainable_parameters(imported).values():
        nn.init.zeros_(parameter)
    lg.load_adapter(imported, tmp_path / "torch.safetensors", check_base=False)
    assert_close(imported(x).detach().numpy(), wanted)
    assert adapter_of(module).tensors.keys() == read_adapter(tmp_path / "onnx.safetensors").tensors.keys()
    assert not executed()


def test_onnx_sites_are_plain_names_when_nodes_have_hostile_ones():
    nodes, x = [], "x"
    for i, name in enumerate(NAMES):
        nodes.append(helper.make_node("MatMul", [x, "w"], [f"f{i}"], name=f"{name}/{i}"))
        nodes.append(helper.make_node("Add", [x, f"f{i}"], [f"y{i}"], name=name))
        x = f"y{i}"
    infos = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["N", WIDTH]) for name in ("x", x)]
    weight = onnx.numpy_helper.from_array(torch.eye(WIDTH).numpy(), "w")
    graph = helper.make_graph(nodes, "g", infos[:1], infos[1:], [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    sites = [residual.site for residual in lg.inspect(model).residuals]
    assert len(set(sites)) == len(NAMES) and all(is_safe_in_code(site) and len(site) < 200 for site in sites)


@pytest.mark.parametrize("field", [{"site": "\ud800"}, {"site": 5}, {"dtype": "load"}, {"dtype": "int8"}])
def test_spec_is_refused_when_its_text_can_be_no_name_or_type(field):
    with pytest.raises(ConfigError, match="is not valid"):
        SiteSpec(**{"site": "s", "variant": "rw", "axis": -1, "width": 4, "ndim": 2, **field})


def test_variant_is_refused_at_once_when_it_is_a_long_text():
    with pytest.raises(LaurelError):
        LaurelConfig(variant="a" + " " * 200_000 + "b")
