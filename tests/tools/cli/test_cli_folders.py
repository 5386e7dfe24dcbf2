"""The command line on model folders."""

import json

from folder_models import write_folder

from laurel_graph import runtime
from laurel_graph.tools import cli


def run(capsys, monkeypatch, *words):
    monkeypatch.setattr("sys.argv", ["laurel", *map(str, words)])
    try:
        cli.main()
    except SystemExit as done:
        code = done.code or 0
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_commands_take_and_write_folders(tmp_path, capsys, monkeypatch):
    base = write_folder(tmp_path / "base")
    code, out, _ = run(capsys, monkeypatch, "inspect", base)
    assert code == 0 and "4 identity" in out
    code, out, err = run(capsys, monkeypatch, "transform", base, "-o", tmp_path / "t", "--variant", "rw")
    assert code == 0, err
    assert f"wrote {tmp_path / 't'}" in out
    code, out, _ = run(capsys, monkeypatch, "doctor", tmp_path / "t", "--json")
    found = json.loads(out)["model"]
    assert code == 0 and found["folder"] == "genai" and found["LAuReL"] == "4 sites, trainable"
    if runtime.library_path() is not None:
        assert found["GenAI loads"] == f"{runtime.library_path().name} (ours, as installed here)"
    code, _, err = run(capsys, monkeypatch, "transform", base, "-o", base)
    assert code == 2 and "never written over" in err


def test_doctor_says_what_is_wrong_when_the_library_is_gone(tmp_path, capsys, monkeypatch):
    base = write_folder(tmp_path / "base")
    config = json.loads((base / "genai_config.json").read_text())
    config["model"]["decoder"]["session_options"]["custom_ops_library"] = "liblaurel_ops.so"
    (base / "genai_config.json").write_text(json.dumps(config))
    code, out, _ = run(capsys, monkeypatch, "doctor", base)
    assert code == 0 and "GenAI will refuse the folder" in out
