"""What ``--help`` shows, and the flags that every command knows."""

import importlib.metadata
import json
import os
import re
import shlex
import subprocess
import sys
import warnings
from importlib.metadata import PackageNotFoundError

import onnx
import pytest
import typer.main
from models import token_net

import laurel_graph as lg
from laurel_graph.tools import dependencies, doctor
from laurel_graph.tools.cli import HOMES, app, main
from laurel_graph.tools.cli.help import EXAMPLES, SUMMARIES

GROUP = typer.main.get_command(app)


def laurel(*args):
    """Runs the command in a process of its own and returns (exit code, stdout, stderr)."""
    command = [sys.executable, "-m", "laurel_graph.tools.entry", *map(str, args)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout, done.stderr


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("help") / "m.onnx"
    onnx.save(token_net(), path)
    return path


def help_of(name, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    command = GROUP.commands[name]
    with command.make_context(name, [], resilient_parsing=True) as context:
        return command.get_help(context)


def test_help_lists_every_command_with_a_whole_summary(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    with GROUP.make_context("laurel", [], resilient_parsing=True) as context:
        text = GROUP.get_help(context)
    assert set(GROUP.commands) == set(SUMMARIES) == set(EXAMPLES)
    assert all(summary in text for summary in SUMMARIES.values())


@pytest.mark.parametrize("name", SUMMARIES)
def test_help_of_a_command_fits_the_terminal_and_ends_in_examples_that_can_be_typed(name, monkeypatch):
    text = help_of(name, monkeypatch)
    assert max(map(len, text.splitlines())) <= 80
    assert text.rstrip().endswith(EXAMPLES[name][-1])
    flags = {flag for parameter in GROUP.commands[name].params for flag in (*parameter.opts, *parameter.secondary_opts)}
    typed = shlex.split("\n".join(EXAMPLES[name]).replace("\\\n", " "))
    assert typed[:2] == ["laurel", name]
    assert {word for word in typed if word.startswith("-")} <= flags


def test_help_has_a_short_flag_and_groups():
    code, out, _ = laurel("finetune", "-h")
    headings = [line for line in out.splitlines() if line.endswith(":") and not line.startswith(" ")]
    assert code == 0
    assert headings[:3] == ["Arguments:", "Data and aim:", "Text:"]


def test_quiet_leaves_nothing_on_stderr_but_errors(model, tmp_path):
    code, out, err = laurel("transform", model, "-o", tmp_path / "t.onnx", "--quiet")
    assert code == 0 and out and not err
    code, _, err = laurel("--quiet", "transform", model, "-o", model)
    assert code == 2 and err.count("\n") == 1 and err.startswith("laurel: ")


def test_transform_lets_a_flag_go_before_the_config(model, tmp_path):
    config = tmp_path / "c.json"
    config.write_text(json.dumps({"variant": "rw+lr", "rank": 2}))
    code, out, _ = laurel(
        "transform", model, "-o", tmp_path / "t.onnx", "--config", config, "--variant", "lr", "--json"
    )
    sites = json.loads(out)["sites"]
    assert code == 0 and {(site["variant"], site["rank"]) for site in sites} == {("lr", 2)}


def test_finetune_says_so_when_the_output_is_no_name_of_a_file(model):
    code, _, err = laurel("finetune", model, "--data", "d.npz", "--output", "logits")
    assert code == 2 and "--value logits" in err


@pytest.mark.parametrize(("name", "words"), [("w.safetensors", "lg.export_onnx"), ("w.gguf", "transformers")])
def test_inspect_says_how_to_get_an_onnx_file_when_it_is_given_another(name, words, tmp_path):
    (tmp_path / name).write_bytes(b"\x88nothing of ONNX")
    code, _, err = laurel("inspect", tmp_path / name)
    assert code == 2 and words in err


def test_help_of_all_reads_no_command_when_none_is_typed():
    script = (
        "import sys\nfrom laurel_graph.tools.cli import main\nsys.argv = ['laurel', '--help']\n"
        "try:\n    main()\nexcept SystemExit:\n    print(' '.join(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.splitlines()[-1].split())
    assert "laurel_graph.tools.cli.help" in loaded
    assert not loaded & {f"laurel_graph.tools.cli.{home}" for home in HOMES.values()}


@pytest.mark.parametrize(("typed", "offered"), [("laurel rem", "remove"), ("laurel finetune --valid", "--validation")])
def test_completion_knows_commands_and_their_flags_when_it_is_asked(typed, offered):
    words = {"COMP_WORDS": typed, "COMP_CWORD": str(len(typed.split()) - 1), "_LAUREL_COMPLETE": "complete_bash"}
    command = [sys.executable, "-m", "laurel_graph.tools.entry"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | words)
    assert offered in done.stdout.split()


@pytest.mark.parametrize("name", SUMMARIES)
def test_help_speaks_the_words_of_a_command_line(name, monkeypatch):
    text = help_of(name, monkeypatch)
    assert not re.search(r"\bNone\b|[{}]|<list", text)
    arguments = [p.name.upper() for p in GROUP.commands[name].params if p.param_type_name == "argument"]
    usage = " ".join(text.split("\n\n")[0].split())
    assert all(argument in usage for argument in arguments)


def test_sweep_speaks_of_the_original_where_finetune_wants_a_transformed_file(monkeypatch):
    assert "The original .onnx file" in help_of("sweep", monkeypatch)
    assert "A transformed .onnx file" in help_of("finetune", monkeypatch)


def test_log_level_decides_what_is_on_stderr(model, tmp_path):
    out = tmp_path / "d.onnx"
    assert laurel("transform", model, "-o", tmp_path / "t.onnx")[0] == 0
    said = {
        level: laurel("deploy", tmp_path / "t.onnx", "-o", out, f"--log-level={level}")[2]
        for level in ("error", "warning", "info")
    }
    assert said["error"] == ""
    assert "deploying" not in said["warning"] and "note: every site is still at its start" in said["warning"]
    assert "deploying" in said["info"] and said["warning"] in said["info"]


def test_a_tree_that_is_not_installed_says_so(monkeypatch, capsys):
    def absent(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", absent)
    monkeypatch.setattr(importlib.metadata, "requires", absent)
    monkeypatch.setattr(doctor, "version", absent)
    monkeypatch.setattr(dependencies, "requires", absent)
    monkeypatch.delitem(vars(lg), "__version__", raising=False)
    assert lg.__version__ == lg.UNKNOWN_VERSION
    versions = doctor.examine()["versions"]
    assert "not installed" in versions["laurel-graph"] and "pip install ." in versions["laurel-graph"]
    monkeypatch.setattr(sys, "argv", ["laurel", "--version"])
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
    with pytest.raises(SystemExit) as left:
        main()
    out, err = capsys.readouterr()
    assert not left.value.code and out == f"{lg.UNKNOWN_VERSION}\n" and "pip install ." in err
