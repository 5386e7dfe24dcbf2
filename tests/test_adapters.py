import json
import shutil

import numpy as np
import onnx
import pytest
import torch
from models import token_net
from tolerance import assert_close
from torch_models import randomise, rewritten

from laurel_graph.adapters import (
    adapter_of,
    apply_adapter,
    load_adapter,
    read_adapter,
    save_adapter,
    write_ort_adapter,
)
from laurel_graph.adapters.file import Adapter, to_bytes
from laurel_graph.config import LaurelConfig, SiteSpec
from laurel_graph.errors import AdapterError, ModelError, OutputError
from laurel_graph.fingerprint import Fingerprint
from laurel_graph.fingerprint.digest import file_digests, module_digests
from laurel_graph.formula import initial_parameters
from laurel_graph.importer import import_onnx
from laurel_graph.onnx_model.tensors import set_tensor, tensor_array
from laurel_graph.passes.detect.rule import detect
from laurel_graph.passes.read_onnx.view import view_of
from laurel_graph.passes.rewrite.export import export_onnx
from laurel_graph.passes.rewrite.head import WEIGHT as HEAD
from laurel_graph.passes.rewrite.head import AddHead
from laurel_graph.passes.rewrite.onnx import insert
from laurel_graph.passes.select import select
from laurel_graph.torch_residual.module import freeze_base, laurel_modules


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
    with pytest.raises(AdapterError, match=r"another base: 1 of its .* weights differ"):
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


def test_base_is_the_imported_one_when_the_file_is_replaced_or_the_folder_changes(tmp_path, monkeypatch):
    one, two = (onnx_file_of(tmp_path / f"{seed}.onnx", seed=seed) for seed in (0, 1))
    shutil.copy(one, tmp_path / "model.onnx")
    monkeypatch.chdir(tmp_path)
    module = randomise(import_onnx("model.onnx"))
    shutil.copy(two, tmp_path / "model.onnx")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    for saved in (module, import_onnx(onnx.load(one))):
        adapter = save_adapter(saved, tmp_path / "a.safetensors")
        with pytest.raises(AdapterError, match="another base"):
            apply_adapter(two, adapter, tmp_path / "out.onnx")
        apply_adapter(one, adapter, tmp_path / "out.onnx")
        with pytest.raises(AdapterError, match="another base"):
            load_adapter(import_onnx(two), adapter)
        load_adapter(import_onnx(tmp_path / "out.onnx"), adapter)


def test_tensor_that_trains_does_not_count_when_an_imported_module_is_saved(tmp_path):
    base = onnx_file_of(tmp_path / "m.onnx")
    weight = next(t.name for t in onnx.load(base).graph.initializer if len(t.dims) == 2)
    module = import_onnx(base, trainable=["laurel.*", weight])
    with torch.no_grad():
        for p in module.parameters():
            p.add_(0.5)
    adapter = save_adapter(module, tmp_path / "a.safetensors")
    whole, part = (len(json.loads(adapter_of(m).base["weights"])["weights"]) for m in (base, module))
    assert part == whole - 1
    load_adapter(import_onnx(base), adapter)


def test_new_head_is_no_other_base_but_a_trained_weight_is(tmp_path):
    base = onnx_file_of(tmp_path / "m.onnx")
    model = onnx.load(base)
    AddHead(20, model.graph.output[0].name)(model, 8)
    set_tensor(model, HEAD, np.random.default_rng(0).standard_normal((8, 20)))
    onnx.save(model, tmp_path / "head.onnx")
    for one, other in ((base, tmp_path / "head.onnx"), (tmp_path / "head.onnx", base)):
        adapter = save_adapter(one, tmp_path / "a.safetensors")
        apply_adapter(other, adapter, tmp_path / "out.onnx")
        load_adapter(import_onnx(other), adapter)
    trained = onnx.load(base)
    weight = next(t.name for t in trained.graph.initializer if len(t.dims) == 2 and not t.name.startswith("laurel."))
    set_tensor(trained, weight, 1.001 * tensor_array(trained, weight) + 1e-4)
    onnx.save(trained, tmp_path / "trained.onnx")
    adapter = save_adapter(tmp_path / "trained.onnx", tmp_path / "a.safetensors")
    with pytest.raises(AdapterError, match=r"another base: 1 of its .* weights differ"):
        apply_adapter(base, adapter, tmp_path / "out.onnx")


def with_base(path, base):
    return edited(path, base=base)


def test_adapter_of_an_older_version_is_compared_where_it_can_be_and_else_warned_about(tmp_path):
    one, two = (onnx_file_of(tmp_path / f"{seed}.onnx", seed=seed) for seed in (0, 1))
    adapter = with_base(save_adapter(one, tmp_path / "a.safetensors"), file_digests(onnx.load(one), tmp_path))
    for module in (import_onnx(one), import_onnx(two)):
        assert set(module_digests(module)) == {"onnx"}
    apply_adapter(one, adapter, tmp_path / "out.onnx")
    load_adapter(import_onnx(one), adapter)
    with pytest.raises(AdapterError, match=r"another base: expected the onnx graph .*--no-check-base"):
        apply_adapter(two, adapter, tmp_path / "out.onnx")
    with pytest.raises(AdapterError, match="another base: expected the onnx graph"):
        load_adapter(import_onnx(two), adapter)
    for base in ({}, {"torch": "0" * 64}):
        with pytest.warns(UserWarning, match="base of adapter .* could not be checked"):
            apply_adapter(two, with_base(adapter, base), tmp_path / "out.onnx")
    with pytest.raises(AdapterError, match=r"base of adapter .* cannot be read: the fingerprint is damaged"):
        apply_adapter(one, with_base(adapter, {"weights": "{}"}), tmp_path / "out.onnx")
    apply_adapter(one, adapter, tmp_path / "out.onnx", check_base=False)


def test_base_that_cannot_be_told_is_refused_unless_asked(tmp_path):
    base = onnx_file_of(tmp_path / "m.onnx")
    adapter = with_base(save_adapter(base, tmp_path / "a.safetensors"), {"weights": Fingerprint().to_text()})
    with pytest.raises(AdapterError, match=r"whether adapter .* cannot be told: .*--no-check-base"):
        apply_adapter(base, adapter, tmp_path / "out.onnx")
    with pytest.raises(AdapterError, match="cannot be told"):
        load_adapter(import_onnx(base), adapter)
    load_adapter(import_onnx(base), adapter, check_base=False)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_value_that_is_not_finite_is_refused_when_saved_loaded_or_applied(tmp_path, value):
    base = onnx_file_of(tmp_path / "m.onnx")
    module = randomise(import_onnx(base))
    adapter = save_adapter(module, tmp_path / "a.safetensors")
    name, laurel = next(iter(laurel_modules(module).items()))
    with torch.no_grad():
        laurel.B[0, 0] = value
    for write in (save_adapter, write_ort_adapter):
        with pytest.raises(AdapterError, match=rf"not finite: .*{name}\.B \({value}\)"):
            write(module, tmp_path / "no.safetensors")
    assert not (tmp_path / "no.safetensors").exists()
    data = adapter.read_bytes()
    start = read_adapter(adapter).tensors[f"{name}.B"].tobytes()
    adapter.write_bytes(data.replace(start, np.float32(value).tobytes() + start[4:]))
    before = parameters(import_onnx(base))
    target = import_onnx(base)
    for use in (lambda: load_adapter(target, adapter), lambda: apply_adapter(base, adapter, tmp_path / "out.onnx")):
        with pytest.raises(AdapterError, match=rf"a\.safetensors holds .* not finite: {name}\.B \({value}\)"):
            use()
    assert all(torch.equal(tensor, before[key]) for key, tensor in parameters(target).items())
    assert not (tmp_path / "out.onnx").exists()


def test_value_that_overflows_in_the_model_is_refused_and_changes_nothing(tmp_path):
    module, _, _ = frozen()
    with torch.no_grad():
        for laurel in laurel_modules(module).values():
            laurel.B.fill_(1e6)
    adapter = save_adapter(module, tmp_path / "a.safetensors")
    small, _, _ = frozen()
    small.half()
    before = parameters(small)
    with pytest.raises(AdapterError, match=r"\.B overflows in the model's float16"):
        load_adapter(small, adapter)
    assert all(torch.equal(tensor, before[key]) for key, tensor in parameters(small).items())


def test_second_of_two_adapters_leaves_nothing_of_the_first(tmp_path):
    base = onnx_file_of(tmp_path / "m.onnx")
    paths = [save_adapter(randomise(import_onnx(base), seed), tmp_path / f"{seed}.safetensors") for seed in (1, 2)]
    once = apply_adapter(base, paths[1], tmp_path / "once.onnx")
    first = apply_adapter(base, paths[0], tmp_path / "first.onnx")
    assert apply_adapter(first, paths[1], tmp_path / "twice.onnx").read_bytes() == once.read_bytes()
    module = import_onnx(base)
    for path in paths:
        load_adapter(module, path)
    assert save_adapter(module, tmp_path / "back.safetensors").read_bytes() == paths[1].read_bytes()


@pytest.mark.parametrize("variant", ["rw", "lr", "rw+lr", "rw+pa"])
def test_adapter_of_another_variant_is_refused_by_the_names_of_its_tensors(tmp_path, variant):
    adapter = save_adapter(onnx_file_of(tmp_path / "m.onnx", "rw+lr+pa"), tmp_path / "a.safetensors")
    other = onnx_file_of(tmp_path / "other.onnx", variant)
    with pytest.raises(AdapterError, match="do not fit; tensors extra: ") as caught:
        apply_adapter(other, adapter, tmp_path / "out.onnx")
    assert "\n" not in str(caught.value)
    with pytest.raises(AdapterError, match="do not fit; tensors extra: "):
        load_adapter(import_onnx(other), adapter)


def header_of(path):
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + size]), data[8 + size :]


def with_header(path, header, data):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def test_damaged_header_is_refused_in_one_sentence_before_tensors_are_read(tmp_path):
    path = save_adapter(onnx_file_of(tmp_path / "m.onnx"), tmp_path / "a.safetensors")
    header, data = header_of(path)
    first, second = [name for name in header if name != "__metadata__"][:2]

    def changed(**metadata):
        return {**header, "__metadata__": {**header["__metadata__"], **metadata}}

    text = json.dumps(header).encode()
    cases = {
        "overlap": {**header, second: {**header[second], "data_offsets": header[first]["data_offsets"]}},
        "twice": text.replace(f'"{second}"'.encode(), f'"{first}"'.encode()),
        "beyond": {**header, second: {**header[second], "data_offsets": [0, 10**18]}},
        "shape": {**header, first: {**header[first], "shape": [10**9, 10**9]}},
        "negative": {**header, first: {**header[first], "shape": [-1]}},
        "type": {**header, first: {**header[first], "dtype": "Q8"}},
        "list": [1, 2],
        "deep": b"[" * 100_000,
        "bytes": b"\xff\xfe" * 8,
        "sites list": changed(sites="[]"),
        "sites text": changed(sites='"x"'),
        "sites shape": changed(sites=json.dumps({"common": {}, "sites": {"a": {"width": "wide"}}})),
        "sites number": changed(sites=json.dumps({"common": {}, "sites": 3})),
        "sites none": changed(sites=json.dumps({"common": None, "sites": {"a": None}})),
        "sites deep": changed(sites="[" * 100_000),
        "element type": changed(sites=header["__metadata__"]["sites"].replace("float32", "pickle")),
        "other type": changed(sites=header["__metadata__"]["sites"].replace("float32", "float64")),
        "base list": changed(base="[1]"),
        "base numbers": changed(base='{"onnx": 3}'),
        "base deep": changed(base="[" * 100_000),
        "metadata list": {**header, "__metadata__": [1]},
        "metadata numbers": changed(config=3),
    }
    for name, case in cases.items():
        with_header(path, case, data)
        with pytest.raises(AdapterError) as caught:
            read_adapter(path)
        assert (name, "\n" in str(caught.value), len(str(caught.value)) < 1000) == (name, False, True)
        assert str(path) in str(caught.value)
    for size in (2**63, 10**9, len(text) + len(data) + 1):
        path.write_bytes(size.to_bytes(8, "little") + text + data)
        with pytest.raises(AdapterError, match=f"its header takes {size} bytes"):
            read_adapter(path)
    path.write_bytes((1 << 24).to_bytes(8, "little") + bytes(1 << 25))  # half a million names take minutes
    with pytest.raises(AdapterError, match="expected at most 8388608"):
        read_adapter(path)
    with_header(path, header, data)
    read_adapter(path)


@pytest.mark.parametrize("adapter_inputs", [False, True])
def test_graph_is_looked_at_equally_often_when_there_are_more_sites(tmp_path, monkeypatch, adapter_inputs):
    from laurel_graph.onnx_model import tensors as onnx_tensors

    looks = []
    real = onnx_tensors.graphs_of
    monkeypatch.setattr(onnx_tensors, "graphs_of", lambda graph: looks.append(graph) or real(graph))
    counts = []
    for layers in (2, 9):
        model = token_net(layers=layers)
        plans = select(detect(view_of(model)), LaurelConfig(variant="rw+lr", rank=2)).plans
        insert(model, plans, LaurelConfig(), adapter_inputs=adapter_inputs)
        onnx.save(model, tmp_path / "m.onnx")
        assert len(plans) == layers
        looks.clear()
        adapter = save_adapter(tmp_path / "m.onnx", tmp_path / "a.safetensors")
        apply_adapter(tmp_path / "m.onnx", adapter, tmp_path / "out.onnx")
        counts.append(len(looks))
    assert counts[0] == counts[1]
