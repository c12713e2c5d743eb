# Development commands. `make setup` creates the virtual environment .venv in this folder. The other targets do so first
# if it is missing or out of date.
#   make serve PORT=8000 ARGS="--log-level debug"
#   make setup TORCH_INDEX=URL    package index for torch, to install a build other than the default (CPU, CUDA)

PYTHON ?= python3
PORT ?= 8000
ARGS ?=
TORCH_INDEX ?=

PACKAGES := server decoding ngram_models client benchmarks evaluation
VENV := .venv
BIN := $(VENV)/bin
TORCH := $(shell grep '^torch==' constraints.txt)
# Set as environment variables, the constraints also apply to the packages that pip builds kenlm with (the second
# variable is for pip >= 25.3).
PIP := PIP_CONSTRAINT=constraints.txt PIP_BUILD_CONSTRAINT=constraints.txt PIP_DISABLE_PIP_VERSION_CHECK=1 \
	$(BIN)/python -m pip

.DEFAULT_GOAL := help
.PHONY: help setup serve test check lint types fmt bench bench-quick lmplz docs links clean

help:  ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(VENV)/.stamp  ## Create the virtual environment and install everything

# torch is installed separately, so that TORCH_INDEX is not used for other packages.
$(VENV)/.stamp: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Python 3.11 or newer is required. To select it: make setup PYTHON=python3.11" >&2; exit 1; }
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

# Type checkers do not follow the import hook of an editable install. These links let them find the packages by name.
links:
	@mkdir -p build/typing/superdraft
	@for folder in $(PACKAGES); do ln -sfn ../../../$$folder build/typing/superdraft/$$folder; done

types: setup links  ## Check types
	$(BIN)/mypy $(PACKAGES:%=-p superdraft.%)

fmt: setup  ## Format the code and apply the linter's automatic fixes
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: setup  ## Measure the cost of a superposed step
	$(BIN)/superdraft bench step $(ARGS)

bench-quick: setup  ## Compare the engine's ratios with the recorded ones (ARGS="--record" updates the record)
	$(BIN)/superdraft bench quick $(ARGS)

lmplz: setup  ## Build KenLM's lmplz and build_binary, which build n-gram models
	$(BIN)/python -m superdraft.ngram_models.tools $(ARGS)

docs: $(VENV)/.docs-stamp links  ## Build the documentation website in build/site
	$(BIN)/mkdocs build --strict

$(VENV)/.docs-stamp: $(VENV)/.stamp
	$(PIP) install -e '.[docs]'
	touch $@

clean:  ## Remove build output and caches; keep .venv and downloaded models
	rm -rf build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache .coverage htmlcov
	find . -path ./$(VENV) -prune -o -type d -name __pycache__ -exec rm -rf {} +
