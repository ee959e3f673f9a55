# Every target prints the commands it runs; the README has those of serve, train and test for whoever has no make.
PYTHON ?= python3
PORT ?= 8000
MODEL ?= fashion earth
OUT ?= runs/mine
export PHOTOS OUT # recipes read them from the environment: a path may have quotes
BUDGET ?= 10h
PIP = .venv/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: help serve train fashion photos-given train-env test wheel wheel-test bench guard lint format clean

help: ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 20

serve: .venv/serving ## serve the shipped students on http://127.0.0.1:8000, or PORT=...
	.venv/bin/python -m server $(addprefix --model ,$(MODEL)) --port $(PORT)

train: photos-given .venv/training ## train a student on PHOTOS=..., a folder of pictures, in OUT=runs/mine; then serve it
	.venv/bin/python -m fewstep train "$$PHOTOS" --out "$$OUT" $(ARGS) --serve

fashion: .venv/training ## make a student like the shipped one, from the data to the report, in runs/fashion: BUDGET=10h
	.venv/bin/python -m fewstep train fashion --out runs/fashion --budget $(BUDGET) $(ARGS)

photos-given:
	@test -n "$$PHOTOS" || { echo 'say which pictures: make train PHOTOS=path/to/folder' >&2; exit 2; }

train-env: .venv/training ## what training and exporting need; then: . .venv/bin/activate

test: .venv/developing ## the whole CPU suite
	.venv/bin/python -m pytest -n 3 --dist loadfile

wheel: .venv/serving ## dist/fewstep-*.whl, which pip installs without the checkout
	.venv/bin/python -m pip wheel --quiet --no-deps --wheel-dir dist .

wheel-test: .venv/developing ## build it, install it in a new environment, serve and generate; needs a package index
	.venv/bin/python -m pytest tests/wheel/fresh_install.py

bench: .venv/benchmarking ## latency against quality, student against seven solvers, in five minutes
	.venv/bin/python benchmarks/latency.py

guard: .venv/developing ## ratios and counts of instructions beside the committed ones, in half a minute; judges nothing
	.venv/bin/python benchmarks/guard.py

lint: .venv/developing ## ruff and pyright
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/pyright

format: .venv/developing ## rewrite the code in the project's style
	.venv/bin/ruff format .
	.venv/bin/ruff check --fix .

clean: ## remove the environment and caches; runs/ stays
	rm -rf .venv build dist .pytest_cache .ruff_cache

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/serving: .venv/bin/python pyproject.toml constraints.txt
	$(PIP) --editable .
	@touch $@

.venv/training: .venv/bin/python pyproject.toml constraints.txt
	$(PIP) --editable '.[train]'
	@touch $@

.venv/benchmarking: .venv/bin/python pyproject.toml constraints.txt
	$(PIP) --editable '.[bench]'
	@touch $@

.venv/developing: .venv/bin/python pyproject.toml constraints.txt
	$(PIP) --editable '.[dev]'
	@touch $@
