"""The line that installs what is missing is right however this package came here."""

import sys
from importlib.metadata import PackageNotFoundError

import pytest

from laurel_graph.errors import DependencyError
from laurel_graph.tools import dependencies
from laurel_graph.tools.dependencies import install_line, requirements

WHEEL = ["torch>=2.8", 'accelerate>=1.0; extra == "finetune"', "laurel-graph[finetune]; extra == 'demo'"]


def installed_as_wheel(name):
    return WHEEL


def not_installed(name):
    raise PackageNotFoundError(name)


@pytest.mark.parametrize("way", [installed_as_wheel, not_installed])
def test_the_line_names_the_package_itself_in_the_version_of_the_extra(way, monkeypatch):
    monkeypatch.setattr(dependencies, "requires", way)
    assert install_line("accelerate") == "pip install 'accelerate>=1.0'"
    assert install_line("unheard-of") == "pip install unheard-of"
    assert "laurel-graph" not in " ".join(line for lines in requirements().values() for line in lines)


def test_no_message_asks_an_index_for_this_package(monkeypatch, tmp_path):
    from laurel_graph.tools.finetuning.data_files import read_data

    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    (tmp_path / "d.parquet").write_bytes(b"PAR1")
    with pytest.raises(DependencyError, match=r"needs pyarrow.*pip install 'pyarrow") as raised:
        read_data(str(tmp_path / "d.parquet"))
    assert "laurel-graph" not in str(raised.value)
