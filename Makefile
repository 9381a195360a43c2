# Every command of the README and of .ci/run. `make train` and `make test` need only Python 3.11,
# g++ and make; everything else is installed into .venv.

PYTHON ?= $(firstword $(shell command -v python3.11 python3))
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
DOCS := $(VENV)/docs
CSRC := $(shell find csrc -type f 2>/dev/null)
CPP := $(filter %.h %.cpp %.cu %.cuh,$(CSRC)) $(wildcard tests/cuda/*.h tests/cuda/*.cpp tests/cuda/*.cu)
BUILD_FILES := pyproject.toml constraints.txt setup.py CMakeLists.txt iaat_fast/__init__.py

PYTEST := MAKEFLAGS= OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder

.PHONY: help install train test tested quick coverage lint format docs bench evidence gpu clean

help: ## this list
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 10

train: $(INSTALLED) ## train; ARGS are those of python -m iaat_fast.train, by default IAAT on the digits
	$(BIN)/python -m iaat_fast.train $(ARGS)

# A process per core, each with one thread; tests of threads start their own. Compiled modules are kept: the tests start
# many a Python. The checks of lint use one core only, so that they run next to the tests. MAKEFLAGS is emptied for the
# builds that tests start, which are no jobs of this make.
test: $(INSTALLED) ## lint, and every test that needs no GPU
	@$(MAKE) --no-print-directory --jobs=2 lint tested

tested: $(INSTALLED) $(DOCS)/.installed
	$(PYTEST) -m "not gpu" $(ARGS)

quick: $(INSTALLED) ## the quick tests of the library, one case of each, none on real data
	IAAT_FAST_DATA= $(PYTEST) --ignore=tests/gpu --ignore=tests/benchmarks -m "not slow and not gpu" --thin 1 $(ARGS)

coverage: $(INSTALLED) ## the lines of iaat_fast that `make test` reaches; those of Triton's kernels are not counted
	$(PYTEST) -m "not gpu" --cov --cov-report=term:skip-covered $(ARGS)

lint: $(INSTALLED) ## style, types and import rules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/clang-format --dry-run --Werror $(CPP)

format: $(INSTALLED) ## ruff and clang-format, in place
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CPP)

docs: $(DOCS)/.installed ## the documentation as a site in build/site, every link checked
	NO_MKDOCS_2_WARNING=1 $(DOCS)/bin/mkdocs build --strict

# Single calls, timed by pytest-benchmark. The benchmarks with their records are `python -m benchmarks NAME`.
bench: $(INSTALLED) ## time single calls on the CPU
	PYTHONPATH=. $(BIN)/python -m pytest benchmarks $(ARGS)

# Continues with the runs that it finds.
evidence: $(INSTALLED) ## is IAAT beyond the curve of fixed radii? On the digits, in runs/evidence
	$(BIN)/python -m benchmarks.evidence digits $(ARGS)

gpu: PYTHON = python3
gpu: ## on a machine with a GPU: build, test and measure with its own Python; fetches nothing
	@$(PYTHON) -m benchmarks.gpu $(ARGS)

install: $(INSTALLED) ## .venv, pinned requirements, editable build

# The stamp goes stale when anything that shapes the build changes, so no command runs an old one.
$(INSTALLED): $(BUILD_FILES) $(CSRC)
	test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet -c constraints.txt setuptools pybind11 cmake ninja
	$(BIN)/pip install --quiet -c constraints.txt --no-build-isolation -e '.[train,images,triton,corruptions,test,peers,dev]'
	touch $@

# The extra `docs`, without the package: the site is made of sources, and needs no torch. An environment of its own,
# because mkdocs-material and torchattacks pin different versions of requests.
$(DOCS)/.installed: pyproject.toml constraints.txt
	test -x $(DOCS)/bin/pip || $(PYTHON) -m venv $(DOCS)
	$(PYTHON) -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["docs"], sep="\n")' \
		>$(DOCS)/requirements.txt
	$(DOCS)/bin/pip install --quiet --no-compile -c constraints.txt -r $(DOCS)/requirements.txt
	touch $@

clean: ## remove what was built; keeps .venv and runs/
	rm -rf build dist *.egg-info iaat_fast/_C.*.so $(INSTALLED) $(DOCS)/.installed \
		.pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis .benchmarks
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
