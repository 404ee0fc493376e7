# make demo: set everything up and quantize the embedded network; make test: set up, pass the tests.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
READY = $(VENV)/.ready

RELAX = $(VENV)-relax
RELAX_READY = $(RELAX)/.ready

# a worker of pytest-xdist for each core; each takes about 1 GB. WORKERS= for one process
WORKERS ?= -n logical --maxprocesses=8

.PHONY: demo test test-ci test-slow test-kernels-relax test-pythons test-lowest coverage docs lint format wheel \
	release-check clean

# HOST=relax: by today's apache-tvm
HOST ?= relay
DEMO = $(if $(filter relax,$(HOST)),$(RELAX),$(VENV))

demo: $(DEMO)/.ready
	$(DEMO)/bin/tvmc-easyquant demo

test: $(READY)
	$(BIN)/python -m pytest $(WORKERS) $(PYTEST_FLAGS)

# what is too slow for every day; .ci/run runs it
test-ci: $(READY)
	$(BIN)/python -m pytest $(WORKERS) -m "ci and not slow" $(PYTEST_FLAGS)

# a hundred million outputs of every kernel against the norm
test-slow: $(READY)
	$(BIN)/python -m pytest $(WORKERS) -m slow $(PYTEST_FLAGS)

# on today's apache-tvm: every kernel of the manifest, the same text with the same integers, the host of it, and
# what ships: one suite on both hosts
ON_RELAX = tests/test_kernels.py tests/test_epilogue.py tests/test_float_conv.py tests/test_relax.py \
	tests/test_relax_arm.py tests/test_relax_floats.py tests/test_relax_pass.py tests/test_relax_read.py \
	tests/test_host.py tests/test_host_tensors.py tests/test_deploy.py tests/test_deployment.py tests/test_package.py \
	tests/test_shapes.py tests/test_shipped.py tests/test_image_input.py tests/test_measure.py tests/test_tuning.py \
	tests/test_python.py tests/test_saved.py tests/test_resize.py tests/test_several_bits.py \
	tests/test_end_to_end.py
test-kernels-relax: $(RELAX_READY)
	$(RELAX)/bin/python -m pytest $(WORKERS) -m "not slow" $(ON_RELAX) $(PYTEST_FLAGS)

# the half without TVM, from the wheel: on every Python that is supported and found, and with the oldest
# versions of what it needs
test-pythons: wheel
	.ci/without-tvm 3.10 3.11 3.12 3.13

test-lowest: wheel
	.ci/without-tvm --lowest 3.10

# what no test of `make test` runs; COVERAGE_FLAGS=--cov-report=html makes pages
coverage: $(READY)
	$(BIN)/python -m pytest $(WORKERS) --cov --cov-report=term-missing:skip-covered $(COVERAGE_FLAGS) $(PYTEST_FLAGS)

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

# from nothing: setuptools packs whatever an older build/ holds
wheel: $(READY)
	rm -rf build dist
	$(BIN)/python -m build --wheel --outdir dist

# is this commit ready to be published? Uploads nothing; RELEASE_FLAGS=--rehearse goes on where it is not
release-check: $(READY)
	$(BIN)/python .ci/release.py $(RELEASE_FLAGS)

clean:
	rm -rf $(VENV) $(RELAX) build dist .ci/passed *.egg-info easyquant_demo docs/_build docs/generated docs/tutorials .coverage* htmlcov

$(READY): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -e ".[relay,tune,dev]"
	touch $@

$(RELAX_READY): pyproject.toml
	$(PYTHON) -m venv $(RELAX)
	$(RELAX)/bin/python -m pip install --quiet -e ".[relax,test]"
	touch $@
