# Everything runs in .venv, made on first use and refreshed when the requirements change.
# Another interpreter: make test PYTHON=python3.12

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# most modules are never imported; those that are compile then
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile
INSTALLED := $(VENV)/installed
PARITY := $(VENV)/parity-installed
NOTEBOOKS := $(VENV)/notebooks-installed
PACKAGING := $(VENV)/packaging-installed
QUICKSTART := runs/quickstart
DOCS := -m sphinx --builder html --fail-on-warning --keep-going --fresh-env --quiet docs build/docs

.PHONY: quickstart test docs parity processes gpu notebooks dist sbom format clean
.DELETE_ON_ERROR:

quickstart: $(INSTALLED)  ## a synthetic catalogue, all stages, then recommendations with titles
	$(BIN)/python -m mmesid_jax.train --config=configs/quickstart.py --workdir=$(QUICKSTART)
	$(BIN)/python -m mmesid_jax.recommend --workdir=$(QUICKSTART) --user=1,2,3 --top_k=3

test: $(INSTALLED)  ## lint, format check, docs, tests that need neither GPU nor other implementations
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python $(DOCS)
	$(BIN)/python -m pytest -q --numprocesses=2 --dist=loadfile

docs: $(INSTALLED)  ## the documentation site: build/docs/index.html; warnings are errors
	$(BIN)/python $(DOCS)
	@echo "built build/docs/index.html"

parity: $(PARITY)  ## the same numbers as PyTorch, transformers and peft
	$(BIN)/python -m pytest -q -m parity --numprocesses=2 --dist=loadfile

processes: $(INSTALLED)  ## runs of several processes on this host: equal, stopped, killed, resumed
	$(BIN)/python -m pytest -q -m multiprocess

gpu: $(INSTALLED)  ## what needs a GPU and, in .venv, the extra `gpu`
	JAX_PLATFORMS=cuda $(BIN)/python -m pytest -q -m gpu

notebooks: $(NOTEBOOKS)  ## runs every notebook of docs/notebooks
	$(BIN)/python -m pytest -q -m "slow or not slow" tests/test_notebooks.py

dist: $(PACKAGING)  ## source distribution and wheel in dist/, checked
	rm -rf build/lib dist/*.tar.gz dist/*.whl
	$(BIN)/python -m build --outdir dist .
	$(BIN)/twine check --strict dist/*.tar.gz dist/*.whl

# An environment of its own, so that the list has what the wheel needs, no tools, and no path of dist/.
sbom: dist  ## what the wheel installs, as CycloneDX JSON: dist/*.cdx.json
	rm -rf build/runtime dist/*.cdx.json
	$(BIN)/python -m venv --without-pip build/runtime
	$(BIN)/python -m pip --python build/runtime/bin/python install --quiet --no-compile dist/*.whl
	rm build/runtime/lib/*/site-packages/mmesid_jax-*/direct_url.json
	name=$$(basename dist/*.whl -py3-none-any.whl) && $(BIN)/cyclonedx-py environment \
	  --output-reproducible --output-file dist/$$name.cdx.json build/runtime/bin/python

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## environment and caches; runs stay
	rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis build dist *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }

$(INSTALLED): requirements.txt pyproject.toml setup.py | $(BIN)/python
	$(PIP) --editable '.[test,docs]'
	touch $@

# torch is pinned for equal numbers. Linux wheels of PyPI carry CUDA; where download size matters, the
# CPU build does as well: PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu
$(PARITY): $(INSTALLED)
	$(PIP) torch==2.13.0 --editable '.[test,docs,parity]'
	touch $@

$(NOTEBOOKS): $(INSTALLED)
	$(PIP) --editable '.[test,docs,notebooks]'
	touch $@

$(PACKAGING): | $(BIN)/python
	$(PIP) 'build>=1.2' 'twine>=6.1' 'cyclonedx-bom>=7'
	touch $@
