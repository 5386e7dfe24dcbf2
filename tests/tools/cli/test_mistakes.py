"""A hundred mistakes that people make: each is one exact line with the right exit code, and never a traceback."""

import shlex
import sys
import warnings
from pathlib import Path

import numpy as np
import onnx
import pytest
from models import mlp
from onnx import TensorProto, helper

import laurel_graph as lg
from laurel_graph.tools import cli, console

NET = """
import torch

class Block(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.a = torch.nn.Linear(8, 8)

    def forward(self, x):
        return x + torch.relu(self.a(x))

def make():
    return torch.nn.Sequential(Block(), Block()), torch.ones(2, 8)

def wide():
    return torch.nn.Sequential(Block(), Block()), torch.ones(2, 9)

def alone():
    return Block()

def broken():
    raise ValueError("no weights here")

def loss(output, batch):
    return undefined

number = 3
"""


def add_data(folder):
    """Writes data of several kinds, right and wrong."""
    rng = np.random.default_rng(1)
    x = rng.standard_normal((12, 16)).astype(np.float32)
    label = np.arange(12) % 16
    np.savez(folder / "d.npz", x=x, label=label)
    np.savez(folder / "named.npz", pixels=x, label=label)
    np.savez(folder / "narrow.npz", x=x[:, :15], label=label)
    np.savez(folder / "flat.npz", x=x.ravel(), label=np.arange(192) % 16)
    np.savez(folder / "words.npz", x=x, label=np.array(["cat", "dog"] * 6))
    np.savez(folder / "short.npz", x=x, label=label[:5])
    np.savez(folder / "empty.npz", x=x[:0], label=label[:0])
    np.savez(folder / "nan.npz", x=x * np.nan, label=label)
    np.savez(folder / "classes.npz", x=x, label=label + 99)
    np.savez(folder / "negative.npz", x=x, label=label - 1)
    np.savez(folder / "unlabelled.npz", x=x)
    np.savez(folder / "two.npz", x=x, label=label, weight=x[:, 0])
    np.savez(folder / "objects.npz", x=np.array([{}] * 3, dtype=object), label=label[:3])
    np.save(folder / "one.npy", x)
    (folder / "d.csv").write_text("x,label\n1,2\n")
    (folder / "fake.npz").write_text("no archive")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with what a person has at hand when the mistakes are made."""
    folder = tmp_path_factory.mktemp("mistakes")
    onnx.save(mlp(), folder / "m.onnx")
    onnx.save(mlp(2, 8), folder / "small.onnx")
    model = mlp()
    model.graph.input.append(helper.make_tensor_value_info("mask", TensorProto.FLOAT, ["n", 3]))
    onnx.save(model, folder / "two_inputs.onnx")
    plain = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"])],
        "plain",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])],
    )
    onnx.save(
        helper.make_model(plain, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), folder / "plain.onnx"
    )
    lg.transform(folder / "m.onnx", "rw+lr", output=folder / "t.onnx")
    lg.transform(folder / "m.onnx", "rw", output=folder / "rw.onnx")
    lg.save_adapter(folder / "t.onnx", folder / "a.safetensors")
    lg.save_adapter(folder / "rw.onnx", folder / "rw.safetensors")
    lg.deploy(folder / "t.onnx", folder / "served.onnx")
    add_data(folder)
    (folder / "text.onnx").write_text("this is not a model")
    (folder / "half.onnx").write_bytes((folder / "m.onnx").read_bytes()[:-300])
    (folder / "nothing.onnx").write_bytes(b"")
    (folder / "w.pt").write_bytes(b"PK\x03\x04 archive/data.pkl")
    (folder / "w.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{}      ")
    (folder / "w.gguf").write_bytes(b"GGUF\3\0\0\0")
    (folder / "w.h5").write_bytes(b"\x89HDF\r\n")
    (folder / "w.tflite").write_bytes(b"\x1c\0\0\0TFL3")
    (folder / "folder").mkdir()
    (folder / "c.json").write_text('{"variant": "rw", "rnak": 3}')
    (folder / "broken.json").write_text("{variant: rw")
    (folder / "my_net_of_mistakes.py").write_text(NET)
    return folder


COMMANDS = [
    # words that no command knows
    ("inspct m.onnx", 2, ["inspct", "Did you mean 'inspect'"]),
    ("inspect", 2, ["Missing argument MODEL", "laurel inspect -h"]),
    ("inspect m.onnx small.onnx", 2, ["small.onnx", "laurel inspect -h"]),
    ("inspect m.onnx --jsn", 2, ["--jsn"]),
    ("--foo", 2, ["--foo", "laurel -h"]),
    ("transform m.onnx", 2, ["--output"]),
    ("transform m.onnx -o", 2, ["-o", "argument"]),
    ("transform m.onnx -o o.onnx --rank four", 2, ["--rank", "integer"]),
    ("inspect m.onnx --only skips", 2, ["--only", "residual", "rejected"]),
    ("inspect m.onnx --log-level loud", 2, ["--log-level", "loud", "warning"]),
    ("finetune t.onnx -o o.onnx", 2, ["--data"]),
    ("run m.onnx -o o.onnx", 2, ["--pass"]),
    ("apply t.onnx -o o.onnx", 2, ["ADAPTER"]),
    ("verify m.onnx", 2, ["MODEL_B"]),
    # files that are none, or other ones
    ("inspect absent.onnx", 2, ["absent.onnx"]),
    ("inspect folder", 2, ["folder"]),
    ("inspect text.onnx", 2, ["text.onnx"]),
    ("inspect half.onnx", 2, ["half.onnx"]),
    ("inspect nothing.onnx", 2, ["nothing.onnx", "empty"]),
    ("inspect w.pt", 2, ["w.pt", "lg.export_onnx"]),
    ("inspect w.safetensors", 2, ["lg.export_onnx"]),
    ("inspect w.gguf", 2, ["transformers"]),
    ("inspect w.h5", 2, ["w.h5"]),
    ("inspect w.tflite", 2, ["w.tflite"]),
    ("inspect d.npz", 2, ["d.npz"]),
    ("inspect plain.onnx --why foo", 2, ["foo"]),
    ("inspect m.onnx --why /block.9/Add", 2, ["/block.9/Add", "/block.1/Add"]),
    ("inspect m.onnx --graph g.png", 2, ["g.png", ".graphml"]),
    ("doctor absent.onnx", 2, ["absent.onnx"]),
    # modules that are named
    ("inspect no.such.module:make", 2, ["no.such.module"]),
    ("inspect my_net_of_mistakes:mak", 2, ["mak", "make"]),
    ("inspect my_net_of_mistakes:number", 2, ["number", "int", "function"]),
    ("inspect my_net_of_mistakes:alone", 2, ["Block", "example inputs"]),
    ("inspect my_net_of_mistakes:broken", 2, ["no weights here", "my_net_of_mistakes.py"]),
    ("transform my_net_of_mistakes:wide -o o.onnx", 2, ["does not run on the example inputs", "'0.a' (Linear)"]),
    # what to put in
    ("transform m.onnx -o o.onnx --variant lora", 2, ["variant", "lora", "rw, lr, pa"]),
    ("transform m.onnx -o o.onnx --rank 0", 2, ["rank", "0"]),
    ("transform m.onnx -o o.onnx --rank 17", 2, ["rank", "17", "16"]),
    ("transform m.onnx -o o.onnx --weights tanh", 2, ["weights", "tanh", "softmax"]),
    ("transform m.onnx -o o.onnx --init zeros", 2, ["init", "zeros", "xavier"]),
    ("transform m.onnx -o o.onnx --variant pa --previous 0", 2, ["previous", "0"]),
    ("transform m.onnx -o o.onnx --variant pa --previous-map dense", 2, ["previous_map", "dense", "low-rank"]),
    ("transform m.onnx -o o.onnx --sites encoder.*", 2, ["encoder.*", "block.0.res1"]),
    ("transform m.onnx -o o.onnx --include skip", 2, ["include", "skip", "identity"]),
    ("transform m.onnx -o o.onnx --override block.0.res1", 2, ["--override"]),
    ("transform m.onnx -o o.onnx --override nowhere=off", 2, ["nowhere"]),
    ("transform m.onnx -o o.onnx --set x", 2, ["x", "NAME=VALUE"]),
    ("transform m.onnx -o o.onnx --config absent.json", 2, ["absent.json"]),
    ("transform m.onnx -o o.onnx --config broken.json", 2, ["broken.json", "JSON"]),
    ("transform m.onnx -o o.onnx --config c.json", 2, ["c.json", "rnak", "rank"]),
    ("transform plain.onnx -o o.onnx", 1, ["residual"]),
    ("transform t.onnx -o o.onnx", 1, ["a LAuReL residual already"]),
    ("transform served.onnx -o o.onnx", 1, ["a LAuReL residual already"]),
    # what is written
    ("transform m.onnx -o m.onnx", 2, ["m.onnx is the input"]),
    ("transform m.onnx -o x.txt", 2, ["x.txt", ".onnx", "x.onnx"]),
    ("deploy t.onnx -o served", 2, ["served", ".onnx"]),
    ("remove t.onnx -o back.pb", 2, ["back.pb", ".onnx"]),
    ("run m.onnx -o o.json --pass insert", 2, ["o.json", ".onnx"]),
    ("report t.onnx -o page.pdf", 2, ["page.pdf", ".html"]),
    ("transform m.onnx -o folder", 2, ["folder", "directory"]),
    ("transform m.onnx -o no/such/o.onnx", 2, ["no/such", "does not exist"]),
    ("transform m.onnx -o /dev/null", 2, ["/dev/null"]),
    ("remove m.onnx -o o.onnx", 2, ["nothing to remove"]),
    ("deploy m.onnx -o o.onnx", 2, ["no LAuReL residual", "transform"]),
    ("deploy served.onnx -o o.onnx", 2, ["deployed already"]),
    ("deploy t.onnx -o o.onnx --target gpu", 2, ["gpu", "cpu"]),
    ("apply a.safetensors t.onnx -o o.onnx", 2, ["a.safetensors", "t.onnx", "each other's place"]),
    ("apply t.onnx absent.safetensors -o o.onnx", 2, ["absent.safetensors"]),
    ("apply m.onnx a.safetensors -o o.onnx", 2, ["m.onnx", "laurel transform"]),
    ("apply t.onnx rw.safetensors -o o.onnx", 2, ["rw.safetensors"]),
    ("apply t.onnx w.safetensors -o o.onnx", 2, ["w.safetensors"]),
    ("apply t.onnx a.safetensors -o o.onnx --match colour", 2, ["match", "colour"]),
    # data
    ("verify m.onnx plain.onnx", 2, ["plain.onnx"]),
    ("verify m.onnx m.onnx --data absent.npz", 2, ["absent.npz"]),
    ("verify m.onnx m.onnx --data fake.npz", 2, ["fake.npz"]),
    ("verify m.onnx m.onnx --data named.npz", 2, ["'x'", "pixels"]),
    ("verify m.onnx m.onnx --size n=many", 2, ["--size"]),
    ("verify m.onnx m.onnx --size q=3", 2, ["'q'", "'n'"]),
    ("finetune t.onnx --data absent.npz -o o.onnx", 2, ["absent.npz"]),
    ("finetune t.onnx --data d.csv -o o.onnx", 2, ["d.csv", "--target", "x, label"]),
    ("finetune t.onnx --data one.npy -o o.onnx", 2, ["one.npy", ".npz"]),
    ("finetune t.onnx --data named.npz -o o.onnx", 2, ["'x'", "pixels"]),
    ("finetune t.onnx --data narrow.npz -o o.onnx", 2, ["'x'", "15", "16"]),
    ("finetune t.onnx --data flat.npz -o o.onnx", 2, ["'x'", "(N)", "(n, 16)"]),
    ("finetune t.onnx --data words.npz -o o.onnx", 2, ["label", "not numeric", "numpy.unique"]),
    ("finetune t.onnx --data short.npz -o o.onnx", 2, ["x 12", "label 5"]),
    ("finetune t.onnx --data empty.npz -o o.onnx", 2, ["no samples"]),
    ("finetune t.onnx --data nan.npz -o o.onnx", 1, ["finite"]),
    ("finetune t.onnx --data classes.npz -o o.onnx", 2, ["99", "16 classes", "--head"]),
    ("finetune t.onnx --data negative.npz -o o.onnx", 2, ["-1", "from 0"]),
    ("finetune t.onnx --data unlabelled.npz -o o.onnx", 2, ["target", "x=..., label=..."]),
    ("finetune t.onnx --data two.npz -o o.onnx", 2, ["--target", "label", "weight"]),
    ("finetune t.onnx --data objects.npz -o o.onnx", 2, ["objects.npz"]),
    ("finetune t.onnx --data d.npz -o o.onnx --loss ce", 2, ["ce", "cross_entropy"]),
    ("finetune t.onnx --data d.npz -o o.onnx --loss my_net_of_mistakes:loss", 2, ["my_net_of_mistakes", "undefined"]),
    ("finetune t.onnx --data d.npz -o o.onnx --target lable", 2, ["lable", "label"]),
    ("finetune t.onnx --data d.npz -o o.onnx --value logits", 2, ["logits"]),
    ("finetune t.onnx --data d.npz -o logits", 2, ["logits.onnx", "--value logits"]),
    ("finetune t.onnx --data d.npz -o o.onnx --lr 0", 2, ["lr", "0"]),
    ("finetune t.onnx --data d.npz -o o.onnx --epochs 0", 2, ["epochs", "0"]),
    ("finetune t.onnx --data d.npz -o o.onnx --validation 1.5", 2, ["1.5"]),
    ("finetune t.onnx --data d.npz -o o.onnx --patience 2", 2, ["patience", "--validation"]),
    ("finetune t.onnx --data d.npz -o o.onnx --adapter a.bin", 2, ["a.bin", ".safetensors"]),
    ("finetune m.onnx --data d.npz -o o.onnx", 2, ["laurel transform"]),
    ("finetune t.onnx --data d.npz -o o.onnx --ranks 4", 2, ["laurel sweep"]),
    ("sweep m.onnx --data d.npz --variants rw", 2, ["--validation"]),
    ("sweep m.onnx --data d.npz --validation 0.3 --variants rw --seeds a", 2, ["--seeds", "a"]),
    # measuring, passes
    ("bench", 2, ["MODELS"]),
    ("bench m.onnx absent.onnx", 2, ["absent.onnx"]),
    ("bench m.onnx two_inputs.onnx", 2, ["x, mask", "by place"]),
    ("bench m.onnx small.onnx", 2, ["small.onnx"]),
    ("bench m.onnx --runs 0", 2, ["at least 1"]),
    ("run m.onnx -o o.onnx --pass flod", 2, ["flod", "fold"]),
    ("run m.onnx -o o.onnx --pass insert:rnak=3", 2, ["rnak", "rank"]),
    ("run m.onnx -o o.onnx --pass my_net_of_mistakes:nothing", 2, ["nothing"]),
    ("--plugin no_such_plugin inspect m.onnx", 2, ["no_such_plugin"]),
]


@pytest.fixture
def typed(made, monkeypatch, capsys):
    """Types a command in the folder, in this process; gives (exit code, stdout, stderr)."""
    monkeypatch.chdir(made)
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)  # the command replaces it
    before = sys.path[:]

    def run(line):
        monkeypatch.setattr(sys, "argv", ["laurel", *shlex.split(line)])
        with pytest.raises(SystemExit) as left, warnings.catch_warnings():
            cli.main()
        out, err = capsys.readouterr()
        return left.value.code or 0, out, err

    yield run
    console.set_level("info")
    sys.path[:] = before


@pytest.mark.parametrize(("line", "code", "words"), COMMANDS, ids=[line for line, _, _ in COMMANDS])
def test_command_answers_in_one_exact_line_when_it_is_mistyped(line, code, words, typed, made):
    before = {path: path.read_bytes() for path in made.rglob("*") if path.is_file() and path.suffix != ".pyc"}
    got, out, err = typed(line)
    said = [text for text in err.splitlines() if text.startswith("laurel: ")]
    assert (got, len(said)) == (code, 1), err
    assert "Traceback" not in err + out and "internal error" not in err
    assert not [word for word in words if word not in said[0]], said[0]
    assert {path: path.read_bytes() for path in before} == before
    assert not Path("o.onnx").exists()


@pytest.fixture(scope="module")
def module(made):
    """The module of the user's own, its class, and a model in which LAuReL is attached."""
    sys.path.insert(0, str(made))
    import my_net_of_mistakes as net

    sys.path.remove(str(made))
    return net


CALLS = {
    "transform: config first": (lambda m, f: lg.transform("rw+lr", f / "m.onnx"), ["transform(model, config"]),
    "transform: LaurelConfig first": (lambda m, f: lg.transform(lg.LaurelConfig(), m), ["transform(model, config"]),
    "transform: inputs for config": (lambda m, f: lg.transform(m, ones(2, 8)), ["config", "inputs come after"]),
    "transform: a tuple for config": (lambda m, f: lg.transform(m, (ones(2, 8),)), ["config", "inputs come after"]),
    "transform: path for inputs": (lambda m, f: lg.transform(f / "m.onnx", "rw", f / "o.onnx"), ["output="]),
    "transform: output of a module": (lambda m, f: lg.transform(m, "rw", output=f / "o.onnx"), ["export_onnx"]),
    "transform: a number": (lambda m, f: lg.transform(3, "rw"), ["nn.Module", "int"]),
    "transform: an unknown field": (lambda m, f: lg.transform(m, {"rnak": 3}), ["rnak", "rank"]),
    "transform: an unknown variant": (lambda m, f: lg.transform(m, "lora"), ["lora"]),
    "transform: wrong inputs": (lambda m, f: lg.transform(m, "rw", ones(2, 9)), ["'0.a' (Linear)", "example inputs"]),
    "transform: NumPy": (lambda m, f: lg.transform(m, "rw", np.ones((2, 8))), ["ndarray", "'0.a' (Linear)"]),
    "transform: an absent file": (lambda m, f: lg.transform(f / "absent.onnx", "rw"), ["absent.onnx"]),
    "inspect: nothing": (lambda m, f: lg.inspect(None), ["NoneType"]),
    "attach: config first": (lambda m, f: lg.attach("rw", m), ["attach(model, config"]),
    "attach: a file": (lambda m, f: lg.attach(f / "m.onnx", "rw"), ["nn.Module", "lg.transform"]),
    "attach: inputs for config": (lambda m, f: lg.attach(m, ones(2, 8)), ["config", "inputs come after"]),
    "attach: wrong inputs": (lambda m, f: lg.attach(m, "rw", ones(2, 9)), ["'0.a' (Linear)", "Give inputs"]),
    "attach: a list": (lambda m, f: lg.attach(m, "rw", [[1.0, 2.0]]), ["list", "Give inputs"]),
    "transform: a traced module and wrong inputs": (
        lambda m, f: lg.verify(lg.transform(traced(m), "rw", ones(2, 9)).model, m),
        ["lg.export_onnx"],
    ),
    "detach: nothing attached": (lambda m, f: lg.detach(m), ["nothing to detach"]),
    "merge: nothing attached": (lambda m, f: lg.merge(m), ["nothing to merge"]),
    "remove: a live model": (lambda m, f: lg.remove(m), ["lg.detach"]),
    "remove: a plain file": (lambda m, f: lg.remove(f / "m.onnx"), ["nothing to remove"]),
    "save_adapter: path first": (lambda m, f: lg.save_adapter("o.safetensors", m), ["save_adapter(model, path)"]),
    "save_adapter: a plain model": (lambda m, f: lg.save_adapter(m, f / "o.safetensors"), ["no LAuReL residuals"]),
    "load_adapter: path first": (lambda m, f: lg.load_adapter(f / "a.safetensors", m), ["load_adapter(model, path)"]),
    "load_adapter: a file": (lambda m, f: lg.load_adapter(f / "t.onnx", f / "a.safetensors"), ["apply_adapter"]),
    "apply_adapter: adapter first": (
        lambda m, f: lg.apply_adapter(f / "a.safetensors", f / "t.onnx", f / "o.onnx"),
        ["each other's place"],
    ),
    "export_onnx: path first": (lambda m, f: lg.export_onnx(m, "o.onnx", ones(2, 8)), ["export_onnx(module, args"]),
    "import_onnx: a module": (lambda m, f: lg.import_onnx(m), ["path of an ONNX file"]),
    "deploy: no output": (lambda m, f: lg.deploy(f / "t.onnx"), ["output="]),
    "deploy: a module": (lambda m, f: lg.deploy(m, f / "o.onnx"), ["lg.export_onnx"]),
    "verify: modules": (lambda m, f: lg.verify(m, m), ["lg.export_onnx"]),
    "session: an absent file": (lambda m, f: lg.session(f / "absent.onnx"), ["absent.onnx"]),
}


def traced(module):
    import torch

    return torch.fx.symbolic_trace(module)


def ones(*shape):
    import torch

    return torch.ones(shape)


@pytest.mark.parametrize("case", CALLS)
def test_call_answers_in_one_exact_sentence_when_it_is_mistaken(case, module, made, capfd):
    call, words = CALLS[case]
    model, _ = module.make()
    with pytest.raises(lg.LaurelError) as raised:
        call(model, made)
    said = str(raised.value)
    assert "\n" not in said and not [word for word in words if word not in said], said
    assert "Traceback" not in capfd.readouterr().err
    assert not (made / "o.onnx").exists()


def test_a_name_that_is_not_there_is_answered_with_a_near_one():
    with pytest.raises(AttributeError) as raised:
        _ = lg.tranform
    assert (raised.value.name, raised.value.obj) == ("tranform", lg)  # from which Python names the near one


def test_there_are_a_hundred_mistakes():
    assert len({line for line, _, _ in COMMANDS}) + len(CALLS) >= 100
