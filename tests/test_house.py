"""The house: arrows run one way, and the package is light to import."""

import ast
import subprocess
import sys
from collections import Counter
from pathlib import Path

import networkx
import pytest

import laurel_graph

ROOT = Path(__file__).resolve().parents[1]
FORBIDDEN = {
    "laurel_graph": ("laurel_graph.passes", "laurel_graph.tools"),
    "passes": ("laurel_graph.tools",),
    "tools": (),
}


def imports_of(path: Path) -> set[str]:
    """Absolute names of the modules that a file of laurel_graph imports at run time."""
    found = set()
    package = path.relative_to(ROOT).with_suffix("").parts[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) + "." if node.level else ""
            module = (base + (node.module or "")).rstrip(".")
            found.add(module)
            found.update(f"{module}.{alias.name}" for alias in node.names)
    return found


@pytest.mark.parametrize("folder", FORBIDDEN)
def test_imports_run_one_way_when_read_from_the_sources(folder):
    wrong = [
        (path.relative_to(ROOT).as_posix(), name)
        for path in (ROOT / folder).rglob("*.py")
        if path != ROOT / "laurel_graph" / "__init__.py"
        for name in imports_of(path)
        if name.startswith(FORBIDDEN[folder])
    ]
    assert wrong == []


ROOMS = {"laurel_graph/importer/operators": 40}
"""Folders that hold one file for each family of operators."""


@pytest.mark.parametrize("folder", FORBIDDEN)
def test_folders_hold_a_dozen_files_when_counted(folder):
    counts = Counter(
        path.parent.relative_to(ROOT).as_posix()
        for path in (ROOT / folder).rglob("*.py")
        if path.name not in ("__init__.py", "__main__.py")
    )
    assert counts
    assert {room: count for room, count in counts.items() if count > ROOMS.get(room, 12)} == {}


@pytest.mark.parametrize("folder", FORBIDDEN)
def test_a_file_over_400_lines_says_why_when_counted(folder):
    long = [path for path in (ROOT / folder).rglob("*.py") if path.read_text().count("\n") > 400]
    silent = [
        path for path in long if "One file, because" not in (ast.get_docstring(ast.parse(path.read_text())) or "")
    ]
    assert [path.relative_to(ROOT).as_posix() for path in silent] == []


def test_modules_form_no_circle_when_they_load():
    files = {module_of(path): path for folder in FORBIDDEN for path in (ROOT / folder).rglob("*.py")}
    graph = networkx.DiGraph()
    for module, path in files.items():
        for name in imports_at_load(path):
            target = name if name in files else name.rpartition(".")[0]
            if target in files and target != module and module != "laurel_graph":
                graph.add_edge(module, target)
    assert graph.number_of_edges() > len(files)
    assert list(networkx.simple_cycles(graph)) == []


def test_rooms_look_one_way_when_they_load():
    files = {module_of(path): path for folder in FORBIDDEN for path in (ROOT / folder).rglob("*.py")}
    graph = networkx.DiGraph()
    for module, path in files.items():
        for name in imports_at_load(path):
            target = name if name in files else name.rpartition(".")[0]
            if target in files and "laurel_graph" not in (module, target):
                graph.add_edge(room_of(module), room_of(target))
    graph.remove_edges_from([(room, room) for room in graph])
    assert len(graph) > 40
    assert list(networkx.simple_cycles(graph)) == []


def room_of(module: str) -> str:
    """The folder of a floor that a module stands in; a module that stands on the floor itself is its own room."""
    parts = module.split(".")
    return ".".join(parts[: 3 if parts[1] in ("passes", "tools") else 2])


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    parts = parts[:-1] if parts[-1] == "__init__" else parts
    return ".".join(parts if parts[0] == "laurel_graph" else ("laurel_graph", *parts))


def imports_at_load(path: Path) -> set[str]:
    """What a file imports when it is loaded: not inside functions, not for types alone."""
    tree = ast.parse(path.read_text())
    module = module_of(path).split(".")
    package = module if path.name == "__init__.py" else module[:-1]
    found: set[str] = set()
    for node in tree.body:
        if isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) + "." if node.level else ""
            found.update(f"{(base + (node.module or '')).rstrip('.')}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
    return found


def loaded_after(code: str) -> set[str]:
    script = f"{code}\nimport sys; print(' '.join(sys.modules))"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(result.stdout.split())


def test_import_loads_no_heavy_package_when_nothing_is_used():
    loaded = loaded_after("import laurel_graph; laurel_graph.LaurelConfig()")
    assert not loaded & {"torch", "onnx", "onnxruntime", "numpy", "networkx", "matplotlib", "typer"}


def test_onnx_commands_load_no_torch_when_they_run():
    loaded = loaded_after(
        "from laurel_graph.tools import cli\n"
        "from laurel_graph.passes import pipeline, select, verify\n"
        "from laurel_graph.passes.deploy import choose, deploy\n"
        "from laurel_graph.passes.detect import rule\n"
        "from laurel_graph.passes.fold import fold\n"
        "from laurel_graph.passes.read_onnx import view\n"
        "from laurel_graph.passes.rewrite import onnx"
    )
    assert not loaded & {"torch", "matplotlib"}


@pytest.mark.parametrize("name", [name for name in laurel_graph.__all__ if name != "__version__"])
def test_public_name_is_documented_when_loaded(name):
    assert getattr(laurel_graph, name).__doc__


def test_unknown_name_is_an_attribute_error_when_asked_for():
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = laurel_graph.nothing


def risks_of(call: ast.Call) -> bool:
    """Tells whether a call runs text, or reads a file in a way that may run it."""
    name = ast.unparse(call.func)
    given = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
    if name in ("torch.load", "np.load", "numpy.load"):
        safe = ("weights_only", "True") if name == "torch.load" else ("allow_pickle", "False")
        return safe not in given.items()
    runs = {"eval", "exec", "compile", "os.system", "os.popen", "pickle.load", "pickle.loads", "yaml.load"}
    return name in runs or given.get("shell") == "True" or name.endswith("parser.parse_model")


def test_no_text_runs_when_read_from_the_sources():
    # one takes a file of Python expressions by definition, one parses graphs that stand in it as text, one reads back
    # the model that it has just pickled into memory
    names = ("zoo/architectures.py", "robustness/mutant_models.py", "conformance/live_habits.py")
    programs = {ROOT / "tools" / name for name in names}
    files = {path for folder in FORBIDDEN for path in (ROOT / folder).rglob("*.py")} - programs
    risky = [
        f"{path.relative_to(ROOT).as_posix()}:{node.lineno}"
        for path in files
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and risks_of(node)
    ]
    assert files and risky == []
