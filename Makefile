# make        check everything: format, lint, types, rooms, tests
# make test   the tests alone         make demo   find the sparsest network for real data
# make dist   build sdist and wheel, and check the wheel in a fresh environment
# make docs   the site, into build/docs/site   make pages  write anew the pages and figures that programs write
# make test-extras   the tests of Lightning, transformers, timm, torchvision and trackers, in .venv-extras
PYTHON ?= python3
BIN := .venv/bin
EXTRAS := .venv-extras/bin
DOCS := .venv-docs/bin
export OMP_WAIT_POLICY ?= passive

.PHONY: check format lint types rooms test test-extras docs pages demo dist bench clean

check: .venv/.dev
	$(BIN)/ruff format --check .
	$(MAKE) lint types test

lint: .venv/.dev
	$(BIN)/ruff check .

types: .venv/.dev
	$(BIN)/mypy

rooms: .venv/.dev
	$(BIN)/pytest tests/guards

format: .venv/.dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# One thread a worker: two workers with two threads each are slower on two cores than with one.
test: .venv/.dev
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist worksteal

# Lightning, transformers, timm, torchvision and trackers, in an environment of their own: their versions need not be ours.
test-extras: .venv-extras/.all
	OMP_NUM_THREADS=1 PYTHONPATH=tests/extras/shim HF_HUB_OFFLINE=1 $(EXTRAS)/pytest -n 2 --dist worksteal tests/extras

# Strict and offline: a warning, a dead link, an outside load is an error. Torch is not needed: sources are read, not imported.
docs: .venv-docs/.all
	$(DOCS)/python docs/site/build.py

pages: .venv/.dev
	$(BIN)/python docs/site/generated.py

demo: .venv/.base
	$(BIN)/incop search --data digits --validation 0.2 --model lenet-300-100 --max-drop 0.01 \
	  --progress $$(test -t 1 && echo auto || echo lines)

# The wheel is built from the sdist, so that both are proven.
dist: .venv/.dev
	rm -rf dist
	PIP_CONSTRAINT= $(BIN)/python -m build --quiet --outdir dist .
	$(BIN)/python tests/release/check_dist.py dist/*.whl dist/*.tar.gz $(BIN)/python

bench: .venv/.dev
	$(BIN)/python benchmarks/probe_cost.py
	$(BIN)/python benchmarks/mask_cost.py

.venv/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "incop needs Python 3.11 or newer, this is " + sys.version.split()[0] + ": make PYTHON=python3.11 …")'
	$(PYTHON) -m venv .venv

.venv/.base: .venv/bin/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	touch $@

.venv/.dev: .venv/bin/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

.venv-extras/.all: pyproject.toml constraints-extras.txt
	test -x $(EXTRAS)/python || $(PYTHON) -m venv .venv-extras
	$(EXTRAS)/python -m pip install --quiet --disable-pip-version-check -c constraints-extras.txt torchvision -e '.[extras]'
	touch $@

.venv-docs/.all: pyproject.toml constraints-docs.txt
	test -x $(DOCS)/python || $(PYTHON) -m venv .venv-docs
	$(DOCS)/python -m pip install --quiet --disable-pip-version-check -c constraints-docs.txt \
	  $$($(DOCS)/python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["docs"])')
	touch $@

clean:
	rm -rf .venv .venv-extras .venv-docs build dist .pytest_cache .ruff_cache .mypy_cache .hypothesis
