# The environment is .venv in this folder; `make setup` makes it, and the other targets do so first where it is missing.
#   make serve PORT=8000 ARGS="--log-level debug"
#   make setup TORCH_INDEX=URL    a package index to take torch from, for a build other than the default one (CPU, CUDA)

PYTHON ?= python3
PORT ?= 8000
ARGS ?=
TORCH_INDEX ?=

PACKAGES := server decoding ngram_models client benchmarks evaluation
VENV := .venv
BIN := $(VENV)/bin
TORCH := $(shell grep '^torch==' constraints.txt)
# As settings, not as options, the pins hold for what pip builds kenlm with, too (the second name is for pip >= 25.3).
PIP := PIP_CONSTRAINT=constraints.txt PIP_BUILD_CONSTRAINT=constraints.txt PIP_DISABLE_PIP_VERSION_CHECK=1 \
	$(BIN)/python -m pip

.DEFAULT_GOAL := help
.PHONY: help setup serve test check lint types fmt bench bench-quick lmplz docs links clean

help:  ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(VENV)/.stamp  ## Make the environment: virtual environment, torch, then everything else

# torch has a step of its own: its index (TORCH_INDEX) must not be asked for other packages.
$(VENV)/.stamp: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Python 3.11 or newer is needed; name one: make setup PYTHON=python3.11" >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install --no-deps $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) $(TORCH)
	$(PIP) install -e '.[dev]'
	touch $@

serve: setup  ## Start the server on PORT, with the options in ARGS
	$(BIN)/superdraft serve --port $(PORT) $(ARGS)

test: setup  ## Run the tests and show their coverage (ARGS go to pytest)
	$(BIN)/python -m pytest --cov --cov-report=term $(ARGS)

check: lint test  ## Everything that must pass before a change is merged

lint: setup types  ## Formatting, lint rules, types and import rules
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports

# Type checkers do not follow an editable install's import hook: links show them the packages under their names.
links:
	@mkdir -p build/typing/superdraft
	@for folder in $(PACKAGES); do ln -sfn ../../../$$folder build/typing/superdraft/$$folder; done

types: setup links  ## Check types
	$(BIN)/mypy $(PACKAGES:%=-p superdraft.%)

fmt: setup  ## Format the code and mend what the linter can
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: setup  ## Measure the cost of a superposed step
	$(BIN)/superdraft bench step $(ARGS)

bench-quick: setup  ## Compare the engine's ratios with the recorded ones (ARGS="--record" writes them down)
	$(BIN)/superdraft bench quick $(ARGS)

lmplz: setup  ## Build KenLM's lmplz and build_binary, which make n-gram models
	$(BIN)/python -m superdraft.ngram_models.tools $(ARGS)

docs: $(VENV)/.docs-stamp links  ## Build the documentation's pages in build/site
	$(BIN)/mkdocs build --strict

$(VENV)/.docs-stamp: $(VENV)/.stamp
	$(PIP) install -e '.[docs]'
	touch $@

clean:  ## Remove build output and caches; .venv and fetched models stay
	rm -rf build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache .coverage htmlcov
	find . -path ./$(VENV) -prune -o -type d -name __pycache__ -exec rm -rf {} +
