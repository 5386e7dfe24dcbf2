"""An adapter finds its sites where another exporter gave them other names."""

import warnings

import numpy as np
import pytest
import torch
from folder_models import write_folder

import laurel_graph as lg
from laurel_graph.adapters.file import Adapter, read_adapter, to_bytes
from laurel_graph.adapters.places import moved
from laurel_graph.config import SiteSpec
from laurel_graph.errors import AdapterError, ConfigError


def adapter(*sites, width=8, variant="rw", **fields):
    specs = {s: SiteSpec(site=s, variant=variant, axis=-1, width=width, ndim=3, **fields) for s in sites}
    tensors = {
        f"{site}.{name}": np.full(shape, place, np.float32)
        for place, (site, spec) in enumerate(specs.items())
        for name, shape in spec.parameter_shapes().items()
    }
    return Adapter(specs, tensors, {"weights": "x"}, "{}")


TORCH = ("model.layers.0.res1", "model.layers.0.res2", "model.layers.1.res1")
GENAI = (
    "model.layers.0.post_attention_layernorm.res1",
    "model.layers.1.input_layernorm.res1",
    "model.layers.1.norm.res1",
)


def test_sites_move_by_their_order():
    one, other = adapter(*TORCH), adapter(*GENAI)
    found = moved(one, other.specs, "auto")
    assert list(found.specs) == list(GENAI)
    assert [spec.site for spec in found.specs.values()] == list(GENAI)
    assert [float(found.tensors[f"{site}.w"].flat[0]) for site in GENAI] == [0, 1, 2]
    assert (found.base, found.config) == (one.base, one.config)


@pytest.mark.parametrize("match", ["auto", "name", "place"])
def test_names_stay_where_they_agree(match):
    one = adapter(*TORCH)
    assert moved(one, one.specs, match) is one


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (adapter(*GENAI[:2]), "3 sites, the model 2"),
        (adapter(*GENAI, width=16), "with width 8, in the model"),
        (adapter(*GENAI, per_channel=True), "per_channel"),
        (adapter("m.2.a", "m.1.a", "m.0.a"), "another order"),
    ],
)
def test_places_that_disagree_are_told(other, message):
    one = adapter(*TORCH)
    assert moved(one, other.specs, "auto") is one
    with pytest.raises(ConfigError, match=message):
        moved(one, other.specs, "place")


def test_names_that_agree_in_part_are_not_guessed_at():
    one, other = adapter(*TORCH), adapter(*TORCH[1:], "model.layers.2.res1")
    assert moved(one, other.specs, "auto") is one
    with pytest.raises(ConfigError, match="auto, name, place"):
        moved(one, other.specs, "nearly")


@pytest.fixture
def models(tmp_path):
    """A transformed folder, and an adapter of it whose sites are called after the norms that follow them."""
    base = write_folder(tmp_path / "base")
    lg.transform(base, output=tmp_path / "t")
    module = lg.import_onnx(tmp_path / "t")
    with torch.no_grad():
        for parameter in lg.trainable_parameters(module).values():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    lg.save_adapter(module, tmp_path / "own.safetensors")
    own = read_adapter(tmp_path / "own.safetensors")
    names = [residual.former for residual in lg.inspect(base).residuals]
    renamed = moved(
        own, {n: SiteSpec.from_dict({**s.to_dict(), "site": n}) for n, s in zip(names, own.specs.values())}, "place"
    )
    (tmp_path / "former.safetensors").write_bytes(to_bytes(renamed))
    return tmp_path


def test_adapter_with_former_names_fits_the_folder(models):
    lg.apply_adapter(models / "t", models / "own.safetensors", models / "a")
    with pytest.warns(
        UserWarning, match=r"matched by place, model.layers.0.post_attention_layernorm.res1 is model.layers.0.res1"
    ):
        lg.apply_adapter(models / "t", models / "former.safetensors", models / "b")
    assert (models / "a" / "model.onnx").read_bytes() == (models / "b" / "model.onnx").read_bytes()
    with pytest.raises(AdapterError, match="missing"):
        lg.apply_adapter(models / "t", models / "former.safetensors", models / "c", match="name")


def test_module_takes_an_adapter_by_place(models):
    one, other = lg.import_onnx(models / "t"), lg.import_onnx(models / "t")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        lg.load_adapter(one, models / "own.safetensors")
    with pytest.warns(UserWarning, match="matched by place"):
        lg.load_adapter(other, models / "former.safetensors")
    for name, parameter in lg.trainable_parameters(one).items():
        assert torch.equal(parameter, lg.trainable_parameters(other)[name])
