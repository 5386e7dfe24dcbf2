"""One output: what may be one, what the file system refuses, what lies there afterwards."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
from output_models import contents, trained_folder

from laurel_graph.adapters import read_adapter, save_adapter, write_ort_adapter
from laurel_graph.errors import OutputError
from laurel_graph.outputs import check_outputs, files, staged, write
from laurel_graph.passes.pipeline import transform
from laurel_graph.tools.cli.look import report
from laurel_graph.tools.experiments.results import Results


def test_write_replaces_an_older_file_and_leaves_nothing_else(tmp_path):
    write(tmp_path / "a", b"old")
    assert write(tmp_path / "a", lambda aside: aside.write_text("new")) == tmp_path / "a"
    assert (tmp_path / "a").read_bytes() == b"new"
    assert len(contents(tmp_path)) == 1


def test_write_replaces_a_link_and_leaves_what_it_leads_to(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk" / "v1").write_bytes(b"old")
    for link, target in (("current", "disk/v1"), ("dangling", "disk/v2")):
        (tmp_path / link).symlink_to(target)
        write(tmp_path / link, b"new")
        assert not (tmp_path / link).is_symlink()
        assert (tmp_path / link).read_bytes() == b"new"
    assert contents(tmp_path / "disk").keys() == {"v1"}
    assert (tmp_path / "disk" / "v1").read_bytes() == b"old"


def test_write_leaves_other_names_of_the_old_file_alone(tmp_path):
    write(tmp_path / "a", b"old")
    (tmp_path / "b").hardlink_to(tmp_path / "a")
    write(tmp_path / "a", b"new")
    assert (tmp_path / "b").read_bytes() == b"old"


def test_write_is_refused_when_the_output_is_no_plain_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "to_pipe").symlink_to("pipe")
    (tmp_path / "to_null").symlink_to("/dev/null")
    (tmp_path / "to_folder").symlink_to(tmp_path)
    (tmp_path / "loop").symlink_to("loop")
    names = ("pipe", "to_pipe", "to_null", "/dev/null", "/dev/stdout", "/dev/fd/1", "/proc/self/fd/1", "/dev/new")
    for name in names:
        with pytest.raises(OutputError, match=r"is a device or a pipe|cannot be written"):
            write(tmp_path / name, b"x")
    for name in ("", "to_folder"):
        with pytest.raises(OutputError, match="is a directory"):
            write(tmp_path / name, b"x")
    with pytest.raises(OutputError, match="does not exist; make it first"):
        write(tmp_path / "none" / "a", b"x")
    with pytest.raises(OutputError, match="NUL"):
        write(tmp_path / "a\0b", b"x")
    assert Path("/dev/null").is_char_device()
    write(tmp_path / "loop", b"a link to nothing is a name like any other")


@pytest.mark.parametrize("length", [200, 244, 245, 251, 255])
def test_write_takes_every_name_that_the_file_system_takes(tmp_path, length):
    for name in ("n" * length, "é" * (length // 2), "n" * (length - 5) + ".onnx"):
        write(tmp_path / name, b"x")
    assert len(contents(tmp_path)) == 3


def test_write_is_refused_when_the_name_is_too_long(tmp_path):
    with pytest.raises(OutputError, match="cannot be written: File name too long"):
        write(tmp_path / ("n" * 256), b"x")
    assert not contents(tmp_path)


@pytest.mark.parametrize(
    "number", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EACCES], ids=errno.errorcode.get
)
@pytest.mark.parametrize("step", ["fsync", "replace", "open"])
def test_write_says_so_in_a_sentence_and_keeps_the_old_file_when_the_system_refuses(
    tmp_path, monkeypatch, number, step
):
    (tmp_path / "a").write_bytes(b"old")

    def refuse(*args, real=getattr(os, step), **kwargs):
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(os, step, refuse)
        with pytest.raises(OutputError, match=f"a cannot be written: {os.strerror(number)}"):
            write(tmp_path / "a", b"new")
    assert contents(tmp_path).keys() == {"a"}
    assert (tmp_path / "a").read_bytes() == b"old"


def test_write_is_refused_when_the_disk_gives_other_bytes_back(tmp_path, monkeypatch):
    (tmp_path / "a").write_bytes(b"old")
    monkeypatch.setattr(files, "sync", lambda path: path.write_bytes(b"nev"))
    with pytest.raises(OutputError, match="reads otherwise"):
        write(tmp_path / "a", b"new")
    assert contents(tmp_path).keys() == {"a"} and (tmp_path / "a").read_bytes() == b"old"


LIMITED = """
import resource, sys
from pathlib import Path
import laurel_graph.outputs
from laurel_graph.errors import OutputError
from laurel_graph.adapters import apply_adapter, save_adapter, write_ort_adapter
from laurel_graph.passes.pipeline import remove, transform
from laurel_graph.passes.deploy.deploy import deploy_file
from laurel_graph.tools.finetuning.training.checkpoint import write_checkpoint
from laurel_graph.tools.report import write_report
import jinja2, torch
model, adapter = sys.argv[1:]
commands = [
    lambda o: transform("plain.onnx", output=o), lambda o: remove(model, o), lambda o: apply_adapter(model, adapter, o),
    lambda o: save_adapter(model, o), lambda o: write_ort_adapter(model, o), lambda o: deploy_file(model, o),
    lambda o: write_report(model, o), lambda o: write_checkpoint(Path(o), {"x": torch.zeros(1000)}, {}),
]
write_report(model, "warm.html")
resource.setrlimit(resource.RLIMIT_FSIZE, (120, 120))
for number, command in enumerate(commands):
    for output in ("out/new", f"out/old{number}"):
        try:
            command(output)
        except OutputError as error:
            print(error)
        else:
            raise SystemExit("written")
"""


def test_every_command_says_so_and_leaves_nothing_when_no_more_can_be_written(tmp_path):
    made = trained_folder(tmp_path)
    (tmp_path / "out").mkdir()
    kinds = (
        [made["plain"].read_bytes()] * 3,
        [made["adapter"].read_bytes(), b"\0\0\0\0TORT", made["plain"].read_bytes()],
    )
    old = {f"old{i}": content for i, content in enumerate([*kinds[0], *kinds[1], b"old", b"PK\x03\x04"])}
    for name, content in old.items():
        (tmp_path / "out" / name).write_bytes(content)
    command = [sys.executable, "-c", LIMITED, str(made["model"]), str(made["adapter"])]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 16
    assert all("cannot be written: " in line for line in lines), lines
    assert {name: (tmp_path / "out" / name).read_bytes() for name in contents(tmp_path / "out")} == old


def test_staged_file_lies_beside_the_output_with_its_suffix_until_it_is_published(tmp_path):
    with staged(tmp_path / "m.onnx") as aside:
        aside.write(b"x")
        assert (aside.path.parent, aside.path.suffix) == (tmp_path, ".onnx")
        assert not aside.output.exists()
        aside.publish()
        assert aside.output.read_bytes() == b"x"
    with pytest.raises(RuntimeError), staged(tmp_path / "n.onnx") as aside:
        aside.write(b"x")
        raise RuntimeError
    assert contents(tmp_path).keys() == {"m.onnx"}


def test_check_outputs_leaves_no_trace(tmp_path):
    check_outputs(tmp_path / "a", None, inputs=[None, tmp_path / "b"])
    assert not contents(tmp_path)


def test_adapters_are_whole_when_written(tmp_path):
    made = trained_folder(tmp_path)
    save_adapter(made["model"], tmp_path / "b.safetensors")
    assert read_adapter(tmp_path / "b.safetensors").tensors
    write_ort_adapter(made["model"], tmp_path / "b.onnx_adapter")
    assert (tmp_path / "b.onnx_adapter").stat().st_size > 0


def test_report_keeps_a_page_that_nobody_named_when_it_is_not_ours(tmp_path):
    model = trained_folder(tmp_path)["plain"]
    page = model.with_suffix(".html")
    page.write_text("<html>a page of somebody else</html>")
    with pytest.raises(OutputError, match="is no report of ours; name the page"):
        report(model)
    assert "somebody else" in page.read_text()
    page.unlink()
    report(model)
    report(model)
    assert "LAuReL report" in page.read_text()


def test_results_are_refused_when_the_file_is_something_else(tmp_path):
    (tmp_path / "notes").write_text("my notes\n")
    with pytest.raises(OutputError, match="holds no results"):
        Results(tmp_path / "notes")
    (tmp_path / "cut").write_text('{"sett')
    Results(tmp_path / "cut").run({"a": 1}, lambda: 2)
    assert Results(tmp_path / "cut").run({"a": 1}, lambda: 3) == 2
    with pytest.raises(OutputError, match="cannot be written"):
        Results(tmp_path / "notes" / "below").run({"a": 1}, lambda: 2)


def test_transform_is_refused_before_any_work_when_the_output_is_impossible(tmp_path, monkeypatch):
    model = trained_folder(tmp_path)["plain"]
    monkeypatch.setattr("laurel_graph.passes.detect.rule.detect", lambda *_: pytest.fail("worked"))
    with pytest.raises(OutputError, match="does not exist"):
        transform(model, output=tmp_path / "none" / "a.onnx")
