"""Optional packages: which an extra of ours asks for, and the line that installs one, for a wheel and for a clone."""

from __future__ import annotations

import re
import tomllib
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

from laurel_graph.errors import DependencyError

OWN = "laurel-graph"


def requirements() -> dict[str, tuple[str, ...]]:
    """Returns extra to what it asks for, as ``pip`` takes it: of the installed package, or of the tree that this is."""
    try:
        lines = requires(OWN) or ()
    except PackageNotFoundError:
        return _of_tree(Path(__file__).resolve().parents[1] / "pyproject.toml")
    found: dict[str, tuple[str, ...]] = {}
    for line in lines:
        requirement, _, marker = line.partition(";")
        extra = re.search(r"""extra\s*==\s*["']([\w-]+)""", marker)
        if extra is not None and package_of(requirement) != OWN:
            found[extra[1]] = (*found.get(extra[1], ()), requirement.strip())
    return found


def _of_tree(project: Path) -> dict[str, tuple[str, ...]]:
    if not project.is_file():
        return {}
    declared = tomllib.loads(project.read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    return {extra: tuple(line for line in lines if package_of(line) != OWN) for extra, lines in declared.items()}


def package_of(requirement: str) -> str:
    """Returns the name of the package that a requirement names, as package indexes compare names."""
    name = re.match(r"[\w.-]+", requirement.strip())
    return re.sub(r"[-_.]+", "-", name[0]).lower() if name else requirement


def install_line(*packages: str) -> str:
    """Returns the command that installs *packages* in the versions that our extras ask for.

    It names the packages themselves: how this package came here, and where its folder is now, does not matter then.
    """
    known = {package_of(line): line for lines in requirements().values() for line in lines}
    names = [known.get(package_of(package), package) for package in packages]
    return "pip install " + " ".join(name if re.fullmatch(r"[\w.-]+", name) else f"'{name}'" for name in names)


def missing(what: str, package: str) -> DependencyError:
    """Returns the error that *what* needs a package that is not installed."""
    return DependencyError(f"{what} needs {package}, which is not installed: {install_line(package)}.")
