"""No file that a command reads is ever written, by whatever name or link the output reaches it."""

import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from output_models import contents, trained_folder

from laurel_graph.adapters import apply_adapter, save_adapter, write_ort_adapter
from laurel_graph.errors import LaurelError, OutputError
from laurel_graph.outputs import check_outputs
from laurel_graph.passes.deploy.deploy import deploy_file
from laurel_graph.passes.pipeline import remove, transform
from laurel_graph.tools.cli.change import transform as transform_command
from laurel_graph.tools.finetuning.finetune import finetune
from laurel_graph.tools.finetuning.options import FinetuneOptions
from laurel_graph.tools.report import write_report


def same_path(path, folder):
    return path


def relative_path(path, folder):
    return Path(os.path.relpath(path))


def path_with_dots(path, folder):
    (folder / "sub").mkdir(exist_ok=True)
    return folder / "sub" / ".." / path.name


def link(path, folder):
    (folder / "link").symlink_to(path)
    return folder / "link"


def link_to_a_link(path, folder):
    (folder / "first").symlink_to(path)
    (folder / "second").symlink_to("first")
    return folder / "second"


def linked_folder(path, folder):
    (folder / "other").symlink_to(folder, target_is_directory=True)
    return folder / "other" / path.name


def hard_link(path, folder):
    (folder / "hard").hardlink_to(path)
    return folder / "hard"


WAYS = (same_path, relative_path, path_with_dots, link, link_to_a_link, linked_folder, hard_link)


def finetuned(f, **outputs):
    options = {"tuned": f["folder"] / "tuned.onnx", **outputs}
    finetune(
        FinetuneOptions(
            model=f["model"], data=str(f["data"]), validation=str(f["validation"]), loss="distill",
            teacher=f["teacher"], **options,
        )
    )  # fmt: skip


def by_command(f, output):
    transform_command(str(f["plain"]), output, config=f["config"])


COMMANDS = {
    "transform": (("plain", "weights"), lambda f, o: transform(f["plain"], output=o)),
    "transform --config": (("plain", "config"), by_command),
    "remove": (("model", "weights"), lambda f, o: remove(f["model"], o)),
    "apply": (("model", "weights", "adapter"), lambda f, o: apply_adapter(f["model"], f["adapter"], o)),
    "save_adapter": (("model", "weights"), lambda f, o: save_adapter(f["model"], o)),
    "write_ort_adapter": (("model", "weights"), lambda f, o: write_ort_adapter(f["model"], o)),
    "write_ort_adapter of an adapter": (("adapter",), lambda f, o: write_ort_adapter(f["adapter"], o)),
    "deploy": (("model", "weights", "data"), lambda f, o: deploy_file(f["model"], o, data=f["data"])),
    "report": (("model", "weights"), lambda f, o: write_report(f["model"], o)),
    **{
        f"finetune: {name}": (
            ("model", "weights", "data", "validation", "teacher", "teacher weights"),
            lambda f, o, name=name: finetuned(f, **{name: o}),
        )
        for name in ("tuned", "checkpoint")
    },
}
CASES = [(command, name, way) for command, (names, _) in COMMANDS.items() for name in names for way in WAYS]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Files that no test changes, made once."""
    folder = tmp_path_factory.mktemp("made")
    files = trained_folder(folder)
    teacher = onnx.load(files["plain"])
    onnx.save_model(teacher, folder / "teacher.onnx", save_as_external_data=True, location="t.bin", size_threshold=0)
    return {**files, "folder": folder, "teacher": folder / "teacher.onnx", "teacher weights": folder / "t.bin"}


@pytest.fixture
def files(made, monkeypatch):
    monkeypatch.chdir(made["folder"])
    before = set(made["folder"].iterdir())
    yield made
    for path in set(made["folder"].iterdir()) - before:  # the links of this case
        path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()


@pytest.mark.parametrize(("command", "name", "way"), CASES, ids=lambda v: getattr(v, "__name__", v))
def test_input_keeps_its_bytes_when_the_output_leads_to_it(files, command, name, way):
    output = way(files[name], files["folder"])
    before = contents(files["folder"])
    with pytest.raises(LaurelError, match=r"is the input|is another file of this run"):
        COMMANDS[command][1](files, output)
    assert contents(files["folder"]) == before


@pytest.mark.parametrize("way", WAYS)
def test_two_outputs_are_refused_when_they_are_one_file(tmp_path, monkeypatch, way):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.bin").write_bytes(b"old")
    with pytest.raises(OutputError, match="are one file"):
        check_outputs(tmp_path / "a.bin", way(tmp_path / "a.bin", tmp_path))


@pytest.mark.parametrize("other", ["a.bin", "sub/../a.bin", "A.bin", "link"])
def test_two_outputs_are_refused_when_they_would_be_one_new_file(tmp_path, other):
    (tmp_path / "sub").mkdir()
    (tmp_path / "link").symlink_to("a.bin")
    with pytest.raises(OutputError, match="are one file"):
        check_outputs(tmp_path / "a.bin", None, tmp_path / other)
    check_outputs(tmp_path / "a.bin", None, tmp_path / "b.bin")


def test_finetune_refuses_when_tuned_and_adapter_are_one_file(files):
    with pytest.raises(OutputError, match="are one file"):
        finetuned(files, tuned=files["folder"] / "x.safetensors", adapter=files["folder"] / "x.safetensors")


def test_finetune_refuses_when_its_checkpoint_would_replace_a_foreign_file(files):
    foreign = files["folder"] / "tuned.onnx.checkpoint"
    foreign.write_bytes(b"notes of mine")
    with pytest.raises(OutputError, match="is no checkpoint"):
        finetuned(files)
    assert foreign.read_bytes() == b"notes of mine"


def test_finetune_refuses_when_an_output_is_a_shard_of_its_data(files):
    shards = files["folder"] / "shards"
    shards.mkdir()
    np.savez(shards / "one.npz", x=np.ones(3))
    before = contents(shards)
    with pytest.raises(OutputError, match="is the input"):
        finetuned({**files, "data": shards}, tuned=shards / "one.npz")
    assert contents(shards) == before
    (shards / "one.npz").unlink()


def test_finetune_refuses_when_an_output_is_the_module_of_its_loss(files, monkeypatch):
    module = files["folder"] / "my_loss_of_a_test.py"
    module.write_text("def loss(output, batch): ...\n")
    with pytest.raises(OutputError, match="is the input"):
        finetune(
            FinetuneOptions(
                model=files["model"], data=str(files["data"]), tuned=module, loss="my_loss_of_a_test:loss"
            )
        )  # fmt: skip
    assert module.read_text().startswith("def loss")


def test_imported_module_is_not_exported_or_saved_over_its_own_file(files):
    import torch

    from laurel_graph.importer import import_onnx
    from laurel_graph.importer.writing import write_back
    from laurel_graph.passes.rewrite.export import export_onnx

    before = contents(files["folder"])
    module = import_onnx(files["model"])
    for output in (files["model"], files["weights"]):
        for write in (
            lambda o: export_onnx(module, torch.zeros(1, 24), o),
            lambda o: save_adapter(module, o),
            lambda o: write_back(module, files["model"], o),
        ):
            with pytest.raises(OutputError, match="is the input"):
                write(output)
    assert contents(files["folder"]) == before
