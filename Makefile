# make test | demo | bench | gpu | lint | format | build | clean. The first call makes .venv, installs and builds.
# An environment that is already there, for machines without a network: make test PYTHON=/path/to/python VENV=none
PYTHON ?= python3
VENV ?= .venv
ARGS ?=
export MAX_JOBS ?= $(shell nproc 2>/dev/null || echo 2)
# An environment that is already there need not have the package installed.
export PYTHONPATH := $(CURDIR)$(if $(PYTHONPATH),:$(PYTHONPATH))

ifeq ($(VENV),none)
PY := $(PYTHON)
STAMPS := build/stamps$(subst /,-,$(PYTHON))
INSTALLED :=
else
PY := $(VENV)/bin/python
STAMPS := $(VENV)
INSTALLED := $(VENV)/installed
endif

BUILT := $(STAMPS)/built
NATIVE := $(shell find csrc -type f) setup.py pyproject.toml pytorch_ext/build.py
CLANG_FORMAT := $(PY) -c 'import clang_format as c; c.clang_format()'
CPP := $(shell find csrc -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh')

.PHONY: test demo bench gpu lint format build clean

# In as many processes as there are cores, four at most, where pytest-xdist is installed; ARGS="-n 0" in one. Tests of a
# class stay together: some look at what the others have run.
test: $(BUILT)
	$(PY) -m pytest $$($(PY) -c "import xdist" 2>/dev/null && echo "-n auto --maxprocesses 4 --dist loadscope") $(ARGS)

demo: $(BUILT)
	$(PY) examples/demo.py $(ARGS)

bench: $(BUILT)
	$(PY) benchmarks/run.py $(ARGS)

# Builds for the GPU of this machine by itself.
gpu: $(INSTALLED)
	$(PY) benchmarks/gpu.py $(ARGS)

lint: $(INSTALLED)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(CLANG_FORMAT) --dry-run -Werror $(CPP)

format: $(INSTALLED)
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .
	$(CLANG_FORMAT) -i $(CPP)

build: $(BUILT)

clean:
	rm -rf build dist *.egg-info $(BUILT) pytorch_ext/_native.*

# The native part is built by the rule below, which keeps its objects; pip would start from nothing every time.
$(VENV)/installed: requirements-dev.txt pyproject.toml setup.py
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --requirement requirements-dev.txt
	PYTORCH_EXT_BUILD=none $(PY) -m pip install --no-build-isolation --no-deps --editable .
	touch $@

# Not through `python -m pytorch_ext build`: a library that aborts at import must not keep itself from being rebuilt.
$(BUILT): $(INSTALLED) $(NATIVE)
	$(PY) -c "import runpy; runpy.run_path('pytorch_ext/build.py')['build_in_place']()"
	mkdir -p $(STAMPS)
	touch $@
