import json

import numpy as np
import onnx
import pytest
import torch
from models import token_net
from tolerance import assert_close
from torch_models import randomise, rewritten

from laurel_graph.adapter_file import Adapter, to_bytes
from laurel_graph.adapters import (
    adapter_of,
    apply_adapter,
    load_adapter,
    read_adapter,
    save_adapter,
    write_ort_adapter,
)
from laurel_graph.config import LaurelConfig, SiteSpec
from laurel_graph.errors import AdapterError, ModelError, OutputError
from laurel_graph.formula import initial_parameters
from laurel_graph.importer import import_onnx
from laurel_graph.module import freeze_base, laurel_modules
from laurel_graph.passes.detect import detect
from laurel_graph.passes.export import export_onnx
from laurel_graph.passes.insert_onnx import insert
from laurel_graph.passes.onnx_frontend import view_of
from laurel_graph.passes.select import select


def parameters(module):
    return {f"{s}.{n}": p.detach().clone() for s, m in laurel_modules(module).items() for n, p in m.named_parameters()}


def frozen(name="prenorm", variant="rw+lr", **options):
    module, inputs, plans = rewritten(name, variant, **options)
    freeze_base(module)
    return module, inputs, plans


def onnx_file_of(path, variant="rw+lr+pa", seed=0, adapter_inputs=False, **options):
    """Writes a transformed ONNX file of three sites."""
    model = token_net(layers=3)
    for tensor in model.graph.initializer:
        array = onnx.numpy_helper.to_array(tensor) + seed
        tensor.CopyFrom(onnx.numpy_helper.from_array(array.astype(np.float32), tensor.name))
    config = LaurelConfig(variant=variant, rank=2, **options)
    insert(model, select(detect(view_of(model)), config).plans, config, adapter_inputs=adapter_inputs)
    onnx.save(model, path)
    return path


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float64"])
@pytest.mark.parametrize("options", [{}, {"weights": "free", "per_channel": True, "previous_map": "low-rank"}])
def test_adapter_survives_the_round_trip_when_loaded_into_a_fresh_module(tmp_path, dtype, options):
    module, _, plans = frozen("prenorm", "rw+lr+pa", **options)
    randomise(module).to(getattr(torch, dtype))
    path = save_adapter(module, tmp_path / "a.safetensors")
    fresh, _, _ = frozen("prenorm", "rw+lr+pa", **options)
    fresh.to(getattr(torch, dtype))
    load_adapter(fresh, path)
    for name, value in parameters(module).items():
        assert torch.equal(parameters(fresh)[name], value)
    adapter = read_adapter(path)
    assert adapter.specs == {p.spec.site: p.spec.with_dtype(dtype) for p in plans}
    assert set(adapter.tensors) == {f"{p.spec.site}.{n}" for p in plans for n in p.spec.parameter_shapes()}


def test_file_is_read_by_the_safetensors_library(tmp_path):
    from safetensors import safe_open
    from safetensors.torch import load_file

    module, _, _ = frozen()
    randomise(module)
    path = save_adapter(module, tmp_path / "a.safetensors")
    for name, value in load_file(path).items():
        assert torch.equal(value, parameters(module)[name])
    with safe_open(path, "np") as file:
        assert file.metadata()["format"] == "1"


def test_file_has_few_bytes_beyond_its_tensors_at_real_sizes():
    specs = {
        f"encoder.layer.{i}.output.res{j}": SiteSpec(f"encoder.layer.{i}.output.res{j}", "rw+lr", -1, 384, 3, rank=16)
        for i in range(6)
        for j in (1, 2)
    }
    tensors = {f"{s}.{n}": a for s, spec in specs.items() for n, a in initial_parameters(spec).items()}
    adapter = Adapter(specs, tensors, {"onnx": "0" * 64}, LaurelConfig().to_json())
    assert len(to_bytes(adapter)) < 1.01 * sum(a.nbytes for a in tensors.values())


def test_onnx_file_takes_the_adapter_and_gives_it_back(tmp_path):
    base = onnx_file_of(tmp_path / "m.onnx")
    before = base.read_bytes()
    module = randomise(import_onnx(base))
    adapter = save_adapter(module, tmp_path / "a.safetensors")
    output = apply_adapter(base, adapter, tmp_path / "out.onnx")
    assert base.read_bytes() == before
    patched = import_onnx(output)
    for name, value in parameters(module).items():
        if not name.endswith(".w"):
            assert torch.equal(parameters(patched)[name], value)
    x = torch.randn(2, 3, 8)
    assert_close(patched(x).detach(), module(x).detach())
    old, new = onnx.load(base), onnx.load(output)
    changed = {a.name for a, b in zip(old.graph.initializer, new.graph.initializer, strict=True) if a != b}
    assert changed and all(name.startswith("laurel.") for name in changed)
    for model in (old, new):
        del model.graph.initializer[:]
    assert old == new
    back = adapter_of(output)
    for name, value in adapter_of(module).tensors.items():
        if not name.endswith(".w"):
            np.testing.assert_array_equal(back.tensors[name].astype(np.float32), value)
    save_adapter(output, tmp_path / "b.safetensors")
    load_adapter(import_onnx(base), tmp_path / "b.safetensors")


def test_adapter_of_a_torch_module_fits_the_file_exported_from_it(tmp_path):
    module, inputs, _ = frozen()
    base = export_onnx(module, inputs, tmp_path / "m.onnx")
    randomise(module)
    adapter = save_adapter(module, tmp_path / "a.safetensors")
    output = apply_adapter(base, adapter, tmp_path / "out.onnx")
    assert_close(import_onnx(output)(*inputs).detach(), module(*inputs).detach())
    imported = import_onnx(base)
    load_adapter(imported, adapter)
    assert_close(imported(*inputs).detach(), module(*inputs).detach())
    other, _, _ = frozen()
    torch.nn.init.normal_(next(p for p in other.parameters() if not p.requires_grad))
    save_adapter(other, tmp_path / "other.safetensors")
    with pytest.raises(AdapterError, match="another base: 1 of its .* weights differ"):
        apply_adapter(base, tmp_path / "other.safetensors", tmp_path / "no.onnx")


def edited(path, **changes):
    """Rewrites an adapter file with other specs or tensors."""
    adapter = read_adapter(path)
    path.write_bytes(to_bytes(Adapter(**{**vars(adapter), **changes})))
    return path


def test_adapter_of_other_sites_is_refused_by_name_and_changes_nothing(tmp_path):
    module, _, _ = frozen()
    path = save_adapter(module, tmp_path / "a.safetensors")
    site, *rest = read_adapter(path).specs
    before = parameters(module)
    other, _, _ = frozen(sites=tuple(rest))
    with pytest.raises(AdapterError, match=rf"extra: {site}\.w, {site}\.A, {site}\.B"):
        load_adapter(other, path)
    part = save_adapter(other, tmp_path / "part.safetensors")
    with pytest.raises(AdapterError, match=rf"missing: {site}\.w, {site}\.A, {site}\.B"):
        load_adapter(module, part)
    wide, _, _ = frozen(rank=5)
    with pytest.raises(AdapterError, match=rf"{site}\.A has shape \(12, 3\), expected \(12, 5\)"):
        load_adapter(wide, path)
    sigmoid, _, _ = frozen(weights="sigmoid")
    with pytest.raises(AdapterError, match=rf"{site} \(weights: 'softmax', the model has 'sigmoid'\)"):
        load_adapter(sigmoid, path)
    assert all(torch.equal(value, before[name]) for name, value in parameters(module).items())


def test_adapter_of_another_base_is_refused_unless_asked(tmp_path):
    module, _, _ = frozen()
    path = save_adapter(randomise(module), tmp_path / "a.safetensors")
    other, _, _ = frozen()
    with torch.no_grad():
        next(p for p in other.parameters() if not p.requires_grad).add_(1)
    with pytest.raises(AdapterError, match="another base"):
        load_adapter(other, path)
    load_adapter(other, path, check_base=False)
    assert torch.equal(next(iter(parameters(other).values())), next(iter(parameters(module).values())))
    one, two = (onnx_file_of(tmp_path / f"{seed}.onnx", seed=seed) for seed in (0, 1))
    adapter = save_adapter(one, tmp_path / "b.safetensors")
    with pytest.raises(AdapterError, match=r"another base: .* weights differ.*--no-check-base"):
        apply_adapter(two, adapter, tmp_path / "out.onnx")
    with pytest.raises(AdapterError, match="another base"):
        load_adapter(import_onnx(two), adapter)
    assert not (tmp_path / "out.onnx").exists()
    apply_adapter(two, adapter, tmp_path / "out.onnx", check_base=False)


def test_trained_head_does_not_count_as_another_base(tmp_path):
    module, _, _ = frozen("resnet")
    module.fc.requires_grad_(True)
    path = save_adapter(module, tmp_path / "a.safetensors")
    other, _, _ = frozen("resnet")
    other.fc.requires_grad_(True)
    torch.nn.init.normal_(other.fc.weight)
    load_adapter(other, path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read: No such file"),
        (b"", "no safetensors file"),
        (b"hello world", "no safetensors file"),
        ((2).to_bytes(8, "little") + b"{}", "no LAuReL adapter"),
    ],
)
def test_file_that_is_no_adapter_is_refused(tmp_path, content, message):
    path = tmp_path / "a.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(AdapterError, match=message):
        read_adapter(path)


def test_damaged_adapter_is_refused(tmp_path):
    module, _, _ = frozen()
    path = save_adapter(module, tmp_path / "a.safetensors")
    data = path.read_bytes()
    path.write_bytes(data[:-3])
    with pytest.raises(AdapterError, match="damaged"):
        read_adapter(path)
    path.write_bytes(data.replace(b'"format":"1"', b'"format":"9"'))
    with pytest.raises(AdapterError, match="format '9'"):
        read_adapter(path)
    path.write_bytes(data)
    first = next(iter(read_adapter(path).tensors))
    path.write_bytes(data.replace(f'"{first}"'.encode(), f'"{first[:-1]}Q"'.encode()))
    with pytest.raises(AdapterError, match=f"missing: {first}; extra: {first[:-1]}Q"):
        read_adapter(path)


def test_model_without_residuals_is_refused(tmp_path):
    with pytest.raises(AdapterError, match="Linear has no LAuReL residuals"):
        save_adapter(torch.nn.Linear(2, 2), tmp_path / "a.safetensors")
    onnx.save(token_net(), tmp_path / "plain.onnx")
    with pytest.raises(AdapterError, match=r"plain\.onnx has no LAuReL residuals"):
        save_adapter(tmp_path / "plain.onnx", tmp_path / "a.safetensors")
    with pytest.raises(ModelError, match="no such file"):
        save_adapter(tmp_path / "gone.onnx", tmp_path / "a.safetensors")
    module, _, _ = frozen()
    with pytest.raises(OutputError):
        save_adapter(module, tmp_path)
    base = onnx_file_of(tmp_path / "m.onnx")
    adapter = save_adapter(base, tmp_path / "a.safetensors")
    with pytest.raises(OutputError, match="is the input"):
        apply_adapter(base, adapter, base)


def test_onnx_runtime_switches_adapters_per_run(tmp_path):
    import onnxruntime as ort

    base = onnx_file_of(tmp_path / "m.onnx", adapter_inputs=True)
    modules = [randomise(import_onnx(base), seed) for seed in (1, 2)]
    session = ort.InferenceSession(base, providers=["CPUExecutionProvider"])
    x = np.random.default_rng(0).standard_normal((2, 3, 8)).astype(np.float32)
    for i, module in enumerate(modules):
        saved = save_adapter(module, tmp_path / f"{i}.safetensors")
        for source in (saved, module):
            lora = ort.LoraAdapter()
            lora.Load(str(write_ort_adapter(source, tmp_path / f"{i}.onnx_adapter")))
            options = ort.RunOptions()
            options.add_active_adapter(lora)
            assert_close(session.run(None, {"x": x}, options)[0], module(torch.from_numpy(x)).detach())


def test_config_travels_with_the_adapter(tmp_path):
    base = onnx_file_of(tmp_path / "m.onnx", "rw")
    adapter = read_adapter(save_adapter(base, tmp_path / "a.safetensors"))
    assert LaurelConfig.from_json(adapter.config) == LaurelConfig(variant="rw", rank=2)
    assert json.loads(adapter.config)["variant"] == "rw"
