"""Models with their weight files: which names those get, which go, and what lies in the folder in between."""

import hashlib
import platform
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from output_models import contents, locations, plain_model, trained_models, value_of

from laurel_graph import onnx_file
from laurel_graph.config import LaurelConfig
from laurel_graph.errors import ModelError, OutputError, VerificationError
from laurel_graph.outputs import models, staged, workspace
from laurel_graph.outputs.models import stage_model, write_model
from laurel_graph.passes.deploy import deploy as deploy_pass
from laurel_graph.passes.deploy.deploy import deploy_file
from laurel_graph.passes.pipeline import remove, transform

DIGEST = re.compile(r"\.([0-9a-f]{12})\.")


def assert_same_value(one, other):
    np.testing.assert_allclose(value_of(one), value_of(other), rtol=1e-5, atol=1e-5)


def assert_named_by_content(path):
    assert DIGEST.search(path.name)[1] == hashlib.sha256(path.read_bytes()).hexdigest()[:12]


def test_deploy_elsewhere_keeps_both_weight_files_when_theirs_has_the_usual_name(tmp_path):
    source = trained_models(tmp_path / "a", location="model.onnx.data")[0]
    (tmp_path / "b").mkdir()
    served = tmp_path / "b" / "model.onnx"
    deploy_file(source, served)
    own = locations(served) - {"model.onnx.data"}
    assert contents(tmp_path / "b").keys() == {"model.onnx", "model.onnx.data", *own}
    assert (tmp_path / "b" / "model.onnx.data").read_bytes() == (tmp_path / "a" / "model.onnx.data").read_bytes()
    assert_named_by_content(tmp_path / "b" / own.pop())
    assert_same_value(source, served)


def test_deploy_leaves_a_weight_file_alone_when_it_has_the_name_that_theirs_used_to_have(tmp_path):
    source = trained_models(tmp_path, location="served.onnx.data")[0]
    before = contents(tmp_path)
    deploy_file(source, tmp_path / "served.onnx")
    assert {name: contents(tmp_path)[name] for name in before} == before
    assert_same_value(source, tmp_path / "served.onnx")


def test_deploy_is_checked_where_it_stays(tmp_path, monkeypatch):
    source = trained_models(tmp_path)[0]
    real, seen = deploy_pass.check_deployed, {}

    def look(first, second, *others, **how):
        path = second.path
        seen.update(locations=locations(path), content=path.read_bytes(), folder=path.parent)
        assert all((path.parent / location).is_file() for location in locations(path))
        assert not (tmp_path / "served.onnx").exists()
        return real(first, second, *others, **how)

    monkeypatch.setattr(deploy_pass, "check_deployed", look)
    deploy_file(source, tmp_path / "served.onnx")
    assert seen["content"] == (tmp_path / "served.onnx").read_bytes()
    assert seen["folder"] == tmp_path


@pytest.mark.parametrize("elsewhere", [False, True])
def test_deploy_leaves_nothing_behind_when_it_refuses(tmp_path, monkeypatch, elsewhere):
    source = trained_models(tmp_path / "in", location="sub/weights.bin")[0]
    folder = tmp_path / "out" if elsewhere else tmp_path / "in"
    folder.mkdir(exist_ok=True)
    before = contents(tmp_path)

    def refuse(first, second, *_, **__):
        assert len(locations(second.path)) == 2
        raise VerificationError("differs")

    monkeypatch.setattr(deploy_pass, "check_deployed", refuse)
    with pytest.raises(VerificationError):
        deploy_file(source, folder / "served.onnx")
    assert contents(tmp_path) == before
    assert not (tmp_path / "out" / "sub").exists()


def test_deploy_removes_the_weights_of_the_file_that_it_replaces_when_no_other_needs_them(tmp_path):
    first, second = trained_models(tmp_path)
    served = tmp_path / "served.onnx"
    deploy_file(first, served)
    (old,) = locations(served) - {"weights.bin"}
    deploy_file(first, served)
    assert (tmp_path / old).exists()
    (tmp_path / "copy.bin").write_bytes(served.read_bytes())  # somebody keeps the old model under any name
    deploy_file(second, served)
    assert (tmp_path / old).exists()
    assert_same_value(second, served)
    (tmp_path / "copy.bin").unlink()
    (new,) = locations(served) - {"weights.bin"}
    deploy_file(first, served)
    assert not (tmp_path / new).exists()
    assert_same_value(first, served)


def test_deploy_keeps_a_file_that_only_looks_like_one_of_ours(tmp_path):
    first, second = trained_models(tmp_path)
    served = tmp_path / "served.onnx"
    deploy_file(first, served)
    (old,) = locations(served) - {"weights.bin"}
    with (tmp_path / old).open("ab") as file:
        file.write(b"more")
    deploy_file(second, served)
    assert (tmp_path / old).exists()


def test_deploy_takes_a_longer_digest_when_a_foreign_file_has_the_name(tmp_path):
    source = trained_models(tmp_path)[0]
    served = tmp_path / "served.onnx"
    deploy_file(source, served)
    (own,) = locations(served) - {"weights.bin"}
    served.unlink()
    (tmp_path / own).write_bytes(b"foreign")
    deploy_file(source, served)
    (longer,) = locations(served) - {"weights.bin"}
    assert len(longer) == len(own) + 12 and (tmp_path / own).read_bytes() == b"foreign"
    assert_same_value(source, served)


def test_deploy_names_its_weights_within_the_limit_when_the_output_has_the_longest_name(tmp_path):
    source = trained_models(tmp_path)[0]
    for name in ("n" * 250 + ".onnx", "é" * 125 + ".onnx"):
        deploy_file(source, tmp_path / name)
        assert_same_value(source, tmp_path / name)


@pytest.mark.parametrize("location", ["weights.bin", "sub/weights.bin"])
def test_copies_keep_their_place_when_it_is_free(tmp_path, location):
    trained_models(tmp_path / "a", location=location)
    (tmp_path / "b").mkdir()
    source = tmp_path / "a" / "plain.onnx"
    model = onnx_file.read(source)
    for name in ("one.onnx", "two.onnx"):  # two models share one weight file
        write_model(model, tmp_path / "b" / name, source)
        assert (tmp_path / "b" / name).read_bytes() == source.read_bytes()
    assert contents(tmp_path / "b").keys() == {"one.onnx", "two.onnx", location}
    assert_same_value(source, tmp_path / "b" / "two.onnx")


@pytest.mark.parametrize("location", ["weights.bin", "sub/weights.bin"])
@pytest.mark.parametrize("kind", ["file", "link", "output"])
def test_copies_get_a_name_of_their_own_when_another_file_has_it(tmp_path, location, kind):
    trained_models(tmp_path / "a", location=location)
    source, taken = tmp_path / "a" / "plain.onnx", tmp_path / "b" / location
    taken.parent.mkdir(parents=True)
    output = tmp_path / "b" / "t.onnx"
    if kind == "file":
        taken.write_bytes(b"foreign")
    elif kind == "link":
        taken.symlink_to(tmp_path / "a" / location)  # runtimes refuse it
    elif "/" not in location:
        output = taken
    transform(source, LaurelConfig(variant="rw"), output=output)
    assert_same_value(source, output)
    if kind != "output":
        (name,) = locations(output)
        assert re.fullmatch(r"weights\.[0-9a-f]{12}\.bin", name)
        assert taken.is_symlink() if kind == "link" else taken.read_bytes() == b"foreign"
    again = output.with_name("again.onnx")
    remove(output, again)
    assert_same_value(source, again)


def test_copies_are_compared_with_the_original(tmp_path, monkeypatch):
    trained_models(tmp_path / "a")
    (tmp_path / "b").mkdir()
    monkeypatch.setattr(models.shutil, "copyfile", lambda a, b: Path(b).write_bytes(b"half"))
    with pytest.raises(OutputError, match="reads otherwise"):
        transform(tmp_path / "a" / "plain.onnx", output=tmp_path / "b" / "t.onnx")
    assert not contents(tmp_path / "b")


def test_model_beyond_the_limit_is_refused_and_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(models, "_LIMIT", 100)
    with pytest.raises(ModelError, match="a protobuf message holds 100"):
        write_model(plain_model(), tmp_path / "m.onnx")
    assert not contents(tmp_path)


def test_old_weights_wait_for_a_writer_that_uses_them(tmp_path):
    """One command is about to publish what another one replaces: the weights stay till the first is done."""
    first, second = trained_models(tmp_path)
    served = tmp_path / "served.onnx"
    deploy_file(first, served)
    (old,) = locations(served) - {"weights.bin"}
    with staged(served) as aside:
        part = aside.space.new_path()
        part.write_bytes((tmp_path / old).read_bytes())
        assert aside.space.place(part, [old]) == old
        deploy_file(second, served)
        assert (tmp_path / old).exists()
    assert not (tmp_path / old).exists()
    assert not list(tmp_path.glob(".laurel*"))


def test_foreign_journal_reaches_nothing_outside_its_folder(tmp_path):
    inner = tmp_path / "inner"
    inner.mkdir()
    victim = tmp_path / f"w.{hashlib.sha256(b'v').hexdigest()[:12]}.data"
    victim.write_bytes(b"v")
    (tmp_path / "empty").mkdir()
    state = victim.stat()
    lines = [
        f'{{"kind": "{kind}", "name": "{name}", "identity": [{state.st_ino}, {state.st_mtime_ns}]}}'
        for kind in ("made", "old", "folder", "other")
        for name in (f"../{victim.name}", str(victim), "../empty", "x/../../empty")
    ]
    (inner / ".laurel-0.stage").write_text(
        "\n".join([f'{{"host": "{platform.node()}"}}', "[]", "no json", *lines, '{"kind": 3}', ""])
    )
    with workspace(inner):
        pass
    assert victim.exists() and (tmp_path / "empty").is_dir()
    assert not contents(inner)


PARALLEL = """
import sys
from laurel_graph.passes.deploy.deploy import deploy_file
print("ready", flush=True)
sys.stdin.readline()
deploy_file(*sys.argv[1:])
"""


def test_parallel_deployments_to_one_output_leave_one_whole_pair(tmp_path):
    sources = trained_models(tmp_path)
    before = contents(tmp_path)
    served = tmp_path / "served.onnx"
    children = [
        subprocess.Popen(
            [sys.executable, "-c", PARALLEL, str(sources[i % 2]), str(served)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for i in range(4)
    ]
    for child in children:
        assert child.stdout.readline() == "ready\n"
    for child in children:
        child.stdin.write("go\n")
        child.stdin.close()
    assert [child.wait(60) for child in children] == [0] * 4
    assert contents(tmp_path).keys() == {*before, "served.onnx", *locations(served)}
    values = [value_of(source) for source in sources]
    assert any(np.allclose(value_of(served), value, rtol=1e-5, atol=1e-5) for value in values)


def test_stage_model_changes_nothing_in_what_stays_beside_it(tmp_path):
    trained_models(tmp_path)
    source = tmp_path / "plain.onnx"
    model = onnx_file.read(source)
    with staged(tmp_path / "same.onnx") as aside:
        stage_model(aside, model, tmp_path)
        aside.publish()
    assert (tmp_path / "same.onnx").read_bytes() == source.read_bytes()
    assert onnx.load(tmp_path / "same.onnx").graph.initializer[0].raw_data
