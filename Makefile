# make demo: set everything up and quantize the embedded network; make test: set up, pass the tests.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
READY = $(VENV)/.ready

RELAX = $(VENV)-relax
RELAX_READY = $(RELAX)/.ready

.PHONY: demo test test-slow test-kernels-relax docs lint format wheel clean

demo: $(READY)
	$(BIN)/tvmc-easyquant demo

test: $(READY)
	$(BIN)/python -m pytest $(PYTEST_FLAGS)

# a hundred million outputs of every kernel against the norm
test-slow: $(READY)
	$(BIN)/python -m pytest -m slow $(PYTEST_FLAGS)

# every kernel of the manifest, built and run by today's apache-tvm: the same text, the same integers
test-kernels-relax: $(RELAX_READY)
	$(RELAX)/bin/python -m pytest tests/test_kernels.py $(PYTEST_FLAGS)

# the site, in docs/_build; DOCS_FLAGS="-D plot_gallery=0" leaves out the tutorials' output
docs: $(READY)
	$(BIN)/python -W ignore -m sphinx -W --keep-going -q -b html $(DOCS_FLAGS) docs docs/_build

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache --no-logo

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

wheel: $(READY)
	$(BIN)/python -m build --wheel --outdir dist

clean:
	rm -rf $(VENV) $(RELAX) build dist *.egg-info easyquant_demo docs/_build docs/generated docs/tutorials

$(READY): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -e ".[relay,tune,dev]"
	touch $@

$(RELAX_READY): pyproject.toml
	$(PYTHON) -m venv $(RELAX)
	$(RELAX)/bin/python -m pip install --quiet -e ".[relax,test]"
	touch $@
