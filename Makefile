# On a bare machine with make and Python 3.11 or newer, each target first creates .venv and installs what it needs.
# `make figures PYTHON=python3.12` chooses the Python, `make figures OUT=folder` where the figures go.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PYTEST := $(BIN)/python -m pytest --numprocesses 2 --dist loadfile

# Compiled programs are kept, so that a second `make test` or `make figures` starts fast; `make clean` deletes them.
export JAX_COMPILATION_CACHE_DIR ?= $(CURDIR)/build/jax-cache
export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS ?= 0.2

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: accuracy docs docs-check docs-links package-check test-browser help figures figures-quick figures-full test test-examples test-slow test-torch test-all test-newest test-oldest fuzz check gpu-check bench clean

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*  ## /\1|/p' $(MAKEFILE_LIST) | while IFS='|' read -r target text; do \
		printf '  make %-14s %s\n' "$$target" "$$text"; done

figures: OUT = figures
figures: $(VENV)/.installed-figures  ## reproduce all figures into figures/
	$(BIN)/python scripts/make_figures.py --out "$(OUT)"

figures-quick: OUT = build/figures-quick
figures-quick: $(VENV)/.installed-figures  ## the same, small: a check that every figure can be made
	$(BIN)/python scripts/make_figures.py --quick --out "$(OUT)"

figures-full: OUT = build/figures-full
figures-full: $(VENV)/.installed-figures  ## the same with the largest settings: half a day
	$(BIN)/python scripts/make_figures.py --full --out "$(OUT)"

test: $(VENV)/.installed-test  ## the default tests
	$(PYTEST)

test-examples: $(VENV)/.installed-test  ## the examples of the documents
	$(PYTEST) -m examples

test-slow: $(VENV)/.installed-test  ## the slow tests
	$(PYTEST) -m slow

test-torch: $(VENV)/.installed-test $(VENV)/.installed-frameworks  ## the tests with PyTorch, flax, haiku: installs them
	$(PYTEST) tests/test_torch.py tests/test_torch_monitor.py tests/test_models.py adamflow/torch

test-all: $(VENV)/.installed-test  ## every test
	$(PYTEST) -m ""

test-newest:  ## the default tests with the newest release of everything, in .venv-newest
	$(MAKE) test VENV=.venv-newest PIP_FLAGS="--upgrade --upgrade-strategy eager"

test-oldest:  ## the default tests with the lowest versions that pyproject.toml allows, in .venv-oldest
	@mkdir -p build
	$(PYTHON) tests/lowest_versions.py > build/lowest-versions.txt
	$(MAKE) test VENV=.venv-oldest PIP_FLAGS="--constraint build/lowest-versions.txt"

docs: $(VENV)/.installed-docs $(VENV)/.installed-torch  ## the site into build/docs: strict, its notebooks executed and kept
	$(BIN)/python -m sphinx -W --keep-going docs build/docs
	@echo "Open build/docs/index.html"

docs-check: $(VENV)/.installed-docs  ## the site, strict, without running its notebooks: `make test-examples` runs them
	$(BIN)/python -m sphinx -q -W --keep-going -D nb_execution_mode=off -D suppress_warnings=myst-nb.lexer docs build/docs-check

docs-links: $(VENV)/.installed-docs  ## ask the servers whether links to other sites still lead somewhere
	$(BIN)/python -m sphinx -b linkcheck -D nb_execution_mode=off docs build/docs-links

fuzz: $(VENV)/.installed-test  ## generated inputs: a true result, or an error that names the argument; 5 minutes
	$(BIN)/python tests/fuzz.py

check: $(VENV)/.installed-dev  ## lint, format and types
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m pyright

package-check: $(VENV)/.installed-test  ## wheel and sdist, installed without extras; the quick start runs there
	$(BIN)/python tests/package_check.py

test-browser: $(VENV)/.installed-test $(VENV)/.installed-browser  ## the explorer in headless Chromium, if there is one
	$(BIN)/python -m pytest -p no:xdist -m "" tests/test_explorer.py

gpu-check: CHECKS = --parts checks times
gpu-check:  ## every result on this machine's GPU against the CPU, and times there; by python3 as it is, or .venv
	@if [ -x "$(BIN)/python" ]; then $(BIN)/python bench/gpu_check.py $(CHECKS) --out build/gpu-check.json; \
	else $(PYTHON) bench/gpu_check.py $(CHECKS) --out build/gpu-check.json; fi

bench: $(VENV)/.installed-test  ## times as ratios to peers, as a table and as build/bench.json
	@mkdir -p build
	$(BIN)/python bench/run.py --out build/bench.json

accuracy: ACCURACY = $(BIN)/python bench/accuracy.py --resume --seconds 1e6
accuracy: $(VENV)/.installed-test  ## errors of solvers over rtol on 1100 random problems: hours; goes on where it stopped
	$(ACCURACY) --seeds 0:1100 --solvers auto,dopri8,tsit5 --out build/accuracy/runs.jsonl
	$(ACCURACY) --seeds 0:200 --solvers kvaerno5,kencarp4,radau,bdf,lsoda --out build/accuracy/peers.jsonl

clean:  ## delete caches and build outputs; .venv and figures/ stay
	rm -rf build dist .pytest_cache .ruff_cache .hypothesis
	find adamflow scripts tests -name __pycache__ -prune -exec rm -rf {} +

# pip comes last into a new environment: where it is missing, an attempt was cut short and starts again.
$(BIN)/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "adamflow needs Python 3.11 or newer, but '$(PYTHON) --version' says '$$($(PYTHON) --version 2>&1)';" \
			"name another Python, as in: make test PYTHON=python3.12" >&2; exit 1; }
	@echo "Creating $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv --clear $(VENV)

# One stamp for each extra of pyproject.toml, out of date whenever that file changes.
$(VENV)/.installed-%: pyproject.toml | $(BIN)/pip
	@echo "Installing adamflow[$*] into $(VENV): a minute or two the first time"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_FLAGS) --editable '.[$*]'
	@touch $@
	@echo "Installed adamflow[$*]"
