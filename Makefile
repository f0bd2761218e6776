# `make demo` and `make test` set everything up in .venv on the first call; `make` lists the rest.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
NATIVE := $(shell find binarize/native -type f \( -name '*.cc' -o -name '*.h' -o -name '*.map' -o -name CMakeLists.txt \))
PARALLEL := -n auto --dist worksteal
TYPETREE := build/typetree/binarize

.PHONY: help setup demo test quick check format wheel clean

help:  ## this list
	@sed -n 's/^\([a-z]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST)

setup: $(STAMP)  ## build the op library and install everything into .venv

$(STAMP): pyproject.toml $(NATIVE)
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@

demo: $(STAMP)  ## train, binarize, fine-tune, export and run a small CNN; one table at the end
	$(BIN)/python examples/demo.py

test: $(STAMP)  ## every test, on all cores
	$(BIN)/python -m pytest $(PARALLEL)

quick: $(STAMP)  ## the tests that take less than ten seconds each
	$(BIN)/python -m pytest $(PARALLEL) -m 'not slow'

check: $(STAMP) typetree  ## lint, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	cd build/typetree && ../../$(BIN)/mypy --config-file ../../pyproject.toml -p binarize

format: $(STAMP)  ## let ruff fix what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# mypy cannot see that binarize.passes and binarize.cli lie in top-level folders; links show it.
.PHONY: typetree
typetree:
	@rm -rf build/typetree && mkdir -p $(TYPETREE)
	@ln -s $(foreach path,$(wildcard binarize/*) passes cli,../../../$(path)) $(TYPETREE)/

wheel: $(STAMP)  ## a wheel for this platform in dist/
	$(BIN)/python -m pip wheel . --no-deps -w dist

clean:  ## remove what was built, keep .venv
	rm -rf build dist
