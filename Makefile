# Two commands do all the set-up, each in a virtual environment of the project's own:
#   make demo   the whole path on a real trained model, with a table at the end
#   make test   the test suite and the linters
PYTHON ?= python3
PIP_FLAGS = --disable-pip-version-check --quiet -c constraints.txt
SOURCES = pyproject.toml constraints.txt CMakeLists.txt $(wildcard laurel_graph/kernels/*)

.PHONY: demo test lint clean

demo: .venv/demo.stamp
	.venv/bin/python examples/demo.py

test: .venv/test.stamp
	.venv/bin/python -m pytest

lint: .venv/test.stamp
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

.venv/bin/python:
	$(PYTHON) -m venv .venv

# torch comes first and by itself, so that no other package chooses its build
.venv/torch.stamp: .venv/bin/python constraints.txt
	.venv/bin/python -m pip install $(PIP_FLAGS) torch
	touch $@

.venv/%.stamp: .venv/torch.stamp $(SOURCES)
	.venv/bin/python -m pip install $(PIP_FLAGS) --editable ".[$*]"
	touch $@

clean:
	rm -rf .venv build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
