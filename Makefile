# Commands for users and developers. Each target first installs what it needs, and nothing else, in the virtual
# environment .venv in this folder.
#   make serve PORT=8000 ARGS="--log-level debug"
#   make serve CUDA=1             torch for NVIDIA GPUs (several GB); without it, on Linux, torch for the CPU
#   make serve TORCH_INDEX=URL    torch from this package index
#   make setup PYTHON=python3.12  another Python

PYTHON ?= python3
PORT ?= 8000
ARGS ?=
CUDA ?=
TORCH_INDEX ?=

PACKAGES := server decoding ngram_models client benchmarks evaluation
VENV := .venv
BIN := $(VENV)/bin
# Set as environment variables, the constraints also apply to the packages that pip builds kenlm with (the second
# variable is for pip >= 25.3). Python compiles the modules that it imports; compiling all of them takes longer.
PIP_INSTALL := PIP_CONSTRAINT=constraints.txt PIP_BUILD_CONSTRAINT=constraints.txt PIP_DISABLE_PIP_VERSION_CHECK=1 \
	$(BIN)/python -m pip install -qq --no-compile

# torch on PyPI is a CUDA build on Linux. PyTorch's own index has the CPU build, under a version that counts as newer
# (2.13.0+cpu). It is an extra index, so that pip goes on without it where it cannot be reached.
TORCH := $(shell grep '^torch==' constraints.txt)
TORCH_STAMP := $(VENV)/.stamp-$(TORCH)
CPU_INDEX := $(if $(filter Linux,$(shell uname -s)),https://download.pytorch.org/whl/cpu)
ifneq ($(TORCH_INDEX),)
TORCH_BUILD := $(TORCH_INDEX)
TORCH_SOURCE := --index-url $(TORCH_INDEX)
else ifneq ($(CUDA),)
TORCH_BUILD := PyPI, for CUDA: several GB with its libraries
else
TORCH_BUILD := the CPU build, about 200 MB
TORCH_SOURCE := $(CPU_INDEX:%=--extra-index-url % --retries 1 --timeout 15)
endif

LLAMACPP_TESTS := tests/unit/decoding/model/llamacpp tests/unit/decoding/loading tests/unit/server/test_loading.py \
	tests/unit/benchmarks/test_runners.py tests/parity/test_runner_conformance.py tests/parity/test_llamacpp_engine.py \
	tests/parity/test_gguf_families.py

.DEFAULT_GOAL := help
.PHONY: help setup serve test test-llamacpp check lint types fmt bench lmplz docs links clean boost FORCE

help:  ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(VENV)/.stamp-dev  ## Install everything for development

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Python 3.11 or newer is required. To select it: make setup PYTHON=python3.11" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV)

# An installed torch stays until CUDA or TORCH_INDEX asks for another one.
ifneq ($(CUDA)$(TORCH_INDEX),)
ifneq ($(shell cat '$(TORCH_STAMP)' 2>/dev/null),$(TORCH_BUILD))
$(TORCH_STAMP): FORCE
endif
endif

$(TORCH_STAMP): | $(BIN)/python
	@echo "Installing $(TORCH) ($(TORCH_BUILD))"
	@$(PIP_INSTALL) --force-reinstall --no-deps $(TORCH_SOURCE) $(TORCH)
	@if test -z '$(CUDA)$(TORCH_INDEX)' && grep -q "^cuda.*= '" $(VENV)/lib/python*/site-packages/torch/version.py; then \
		echo "$(CPU_INDEX) cannot be reached. This torch is for CUDA, with several GB of libraries."; fi
	@echo '$(TORCH_BUILD)' > $@

# $(VENV)/.stamp-server, -test, ...: what an extra of pyproject.toml needs.
NEED_TORCH := server test lint dev llamacpp
$(NEED_TORCH:%=$(VENV)/.stamp-%): $(TORCH_STAMP)
$(VENV)/.stamp-%: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing the packages of '.[$*]' in $(VENV)"
	@$(PIP_INSTALL) -e '.[$*]'
	@touch $@

serve: $(VENV)/.stamp-server  ## Start the server on PORT, with the options in ARGS
	@trap : INT; $(BIN)/superdraft serve --port $(PORT) $(ARGS) || test $$? -eq 130  # 130: Ctrl-C

# A file's tests run in one process, because they share servers and models, and the files in the order of testpaths.
# ARGS="-n 0" uses a single one.
# Tests start many processes. Where the environment forbids to write bytecode, each would compile torch and transformers.
test: export PYTHONDONTWRITEBYTECODE :=
test: $(VENV)/.stamp-test  ## Run the tests and show their coverage (ARGS go to pytest)
	$(BIN)/python -m pytest -n logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder \
		--cov --cov-report=term $(ARGS)

# Compiles llama.cpp, which takes about ten minutes on two cores: too long for `make test`, which skips these tests.
test-llamacpp: $(VENV)/.stamp-test $(VENV)/.stamp-llamacpp  ## Run the tests of the runner for GGUF files
	$(BIN)/python -m pytest $(LLAMACPP_TESTS) $(ARGS)

check: lint test  ## Everything that must pass before a change is merged

lint: $(VENV)/.stamp-lint types  ## Formatting, lint rules, types and import rules
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports

# Type checkers do not follow the import hook of an editable install. These links let them find the packages by name.
links:
	@mkdir -p build/typing/superdraft
	@for folder in $(PACKAGES); do ln -sfn ../../../$$folder build/typing/superdraft/$$folder; done

types: $(VENV)/.stamp-lint links  ## Check types
	$(BIN)/mypy $(PACKAGES:%=-p superdraft.%)

fmt: $(VENV)/.stamp-lint  ## Format the code and apply the linter's automatic fixes
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(VENV)/.stamp-server  ## Measure the cost of a superposed step
	$(BIN)/superdraft lab bench step $(ARGS)

lmplz: boost $(VENV)/.stamp-server  ## Build KenLM's lmplz and build_binary, which build n-gram models
	$(BIN)/python -m superdraft.ngram_models.tools $(ARGS)

# Without Boost, lmplz would fail only after everything has been downloaded.
boost:
	@printf '#include <boost/%s>\n' program_options.hpp system/error_code.hpp thread.hpp test/unit_test.hpp \
		| $(CXX) $(CPPFLAGS) -x c++ -E - >/dev/null 2>&1 || { echo "lmplz needs a C++ compiler and Boost. Debian, Ubuntu: apt-get" \
		"install g++ cmake zlib1g-dev libboost-program-options-dev libboost-system-dev libboost-thread-dev" \
		"libboost-test-dev. macOS: brew install cmake boost." >&2; exit 1; }

docs: $(VENV)/.stamp-docs links  ## Build the documentation website in build/site
	$(BIN)/mkdocs build --strict
	@echo "To look at it: $(BIN)/python -m http.server --directory build/site 8080, then open http://localhost:8080"

clean:  ## Remove build output and caches; keep .venv and downloaded models
	rm -rf build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache .coverage htmlcov
	find . -path ./$(VENV) -prune -o -type d -name __pycache__ -exec rm -rf {} +
