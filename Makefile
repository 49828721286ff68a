# Everything here sets itself up: `make quickstart` and `make test` need a Python >= 3.12 and nothing else.
# PYTHON=/path/to/python chooses the interpreter; VENV=dir another place for the environment.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

VENV ?= .venv
VENV_NEWEST ?= .venv-newest
VENV_LOCK ?= .venv-lock
CUDA_COMPILER ?= .cuda-compiler
PY := $(VENV)/bin/python

# XLA allocates a step's temporary memory anew each time, and glibc fetches it from the kernel page by page: with huge
# pages a step of the KuaiRand preset takes 357 page faults instead of 46,857 (LOG.md). Tests gain next to nothing.
quickstart notebooks: export GLIBC_TUNABLES ?= glibc.malloc.hugetlb=1
export KUNLUN_CUDA_COMPILER := $(abspath $(CUDA_COMPILER))
PIP_INSTALL := -m pip install --quiet --disable-pip-version-check

# Arguments for pytest, e.g. make test PYTEST="tests/training -x"
PYTEST ?=
# worksteal gives each worker neighbouring files, so what a file compiled is used again, and evens out the end.
WORKERS ?= 2
# Unix time; tests that have not begun by then are skipped, e.g. make test UNTIL=$$(date -d "40 minutes" +%s)
UNTIL ?=
RUN_PYTEST = -m pytest -n $(WORKERS) --dist worksteal --durations=20 $(if $(UNTIL),--until $(UNTIL))
# $(call BOUNDED,PYTHON): runs the rest of the line so that nothing of it outlives it, nor an end of make.
BOUNDED = $(1) .ci/bounded.py -- $(1)
# The newest lock has no torch, and the CUDA compiler is that of the other jax, so what needs them is left out by name.
NEWEST_TESTS ?= tests --ignore=tests/notebooks --ignore=tests/experiments --ignore=tests/torch_reference \
  --ignore=tests/pallas_kernels/compile_check
# Arguments for the compile check, e.g. make kernels KERNELS="--chip h100 --select dkv"
KERNELS ?=
# What .ci/run does of the long targets. The widest heads need most registers and shared memory; what Triton compiles for
# sm89 and sm90 it compiles for sm80, too.
KERNELS_CI ?= --chip h100 b200 triton-sm80 --one-of-each --select d128-bfloat16-gelu_tanh d128-bfloat16-softmax
# Four minutes of the slow tests: the whole model through interpreted kernels, commands, notebooks that do not train.
SLOW_CI ?= tests/models/test_mosaic.py tests/torch_reference/test_systems.py tests/experiments/test_kernel_peers.py \
  tests/experiments/test_learns.py tests/experiments/test_mfu.py tests/experiments/test_missing.py \
  tests/experiments/test_scaling_law.py tests/experiments/test_scaling_speed.py tests/experiments/test_slurm.py \
  tests/notebooks/test_notebooks.py::test_notebook_runs[03_gdpa] \
  tests/notebooks/test_notebooks.py::test_notebook_runs[04_window_attention] \
  tests/notebooks/test_notebooks.py::test_notebook_runs[05_scaling_law] \
  tests/notebooks/test_notebooks.py::test_notebook_runs[06_dry_run]
NEWEST_CI ?= tests/nn tests/models/test_kunlun.py tests/training/test_step.py tests/training/test_mesh.py \
  tests/training/test_checkpoint.py tests/training/test_optimizer.py tests/training/test_exchange.py \
  tests/pallas_kernels/test_contract.py

.PHONY: help quickstart leaderboard test test-slow test-slow-ci test-newest-jax test-newest-jax-ci faults kernels kernels-ci lint format figures notebooks lock clean gpu carry

help:  ## what there is to make
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 18

# --- environments ---

# A shell function: `find_python` prints the first interpreter that really is Python 3.12 or newer. Each is run, not only looked up,
# for a pyenv shim may stand on PATH with nothing behind it.
define FIND_PYTHON
is_new_enough() { "$$1" -c 'import sys; sys.exit(sys.version_info < (3, 12))' >/dev/null 2>&1; }; \
find_python() { \
  if [ -n "$(PYTHON)" ]; then \
    if is_new_enough "$(PYTHON)"; then echo "$(PYTHON)"; return; fi; \
    echo "error: PYTHON=$(PYTHON) does not run or is older than Python 3.12" >&2; return 1; \
  fi; \
  for candidate in python3.12 python3 python3.13 python3.14 python; do \
    if is_new_enough "$$candidate"; then echo "$$candidate"; return; fi; \
  done; \
  { echo "error: no Python 3.12 or newer found: tried python3.12, python3, python3.13, python3.14 and python on PATH."; \
    echo "Install one, for example by 'pyenv install 3.12', 'uv python install 3.12' or, on Debian and Ubuntu,"; \
    echo "'apt install python3.12 python3.12-venv', or name one: make PYTHON=/path/to/python3.12 ..."; } >&2; \
  return 1; \
}
endef

# make_venv DIR: an environment there that works is kept, anything else there is replaced.
define MAKE_VENV
$(FIND_PYTHON); \
make_venv() { \
  if is_new_enough "$$1/bin/python" && "$$1/bin/python" -m pip --version >/dev/null 2>&1; then return; fi; \
  python="$$(find_python)"; \
  echo "making $$1 with $$python ($$("$$python" --version))"; \
  "$$python" -m venv --clear "$$1" || { \
    echo "error: '$$python -m venv' failed; on Debian and Ubuntu install the package python3-venv (or python3.12-venv)" >&2; \
    return 1; }; \
}
endef

$(PY):
	@$(MAKE_VENV); make_venv $(VENV)

# install_lock FILE: the locked packages, each checked against its hashes; wheels only, nothing is built.
define INSTALL_LOCK
install_lock() { \
  echo "installing $$(grep -c '^[a-z].*==' "$$2") locked packages of $$2 into $$1 ..."; \
  started=$$SECONDS; \
  "$$1/bin/python" $(PIP_INSTALL) --only-binary :all: --require-hashes -r "$$2"; \
  echo "installed in $$((SECONDS - started)) s; $$1 takes $$(du -sm "$$1" | cut -f1) MB"; \
}
endef

# The build backend is in the lock, so the package itself is installed without looking anywhere.
INSTALL_PACKAGE = $(PIP_INSTALL) --no-deps --no-build-isolation --no-index --editable .

$(VENV)/.core: requirements/core.txt | $(PY)
	@$(INSTALL_LOCK); install_lock $(VENV) $<
	@touch $@

$(VENV)/.dev: requirements/dev.txt | $(PY)
	@$(INSTALL_LOCK); install_lock $(VENV) $<
	@touch $(VENV)/.core $@

$(VENV)/.package: pyproject.toml | $(PY)
	@$(PY) $(INSTALL_PACKAGE)
	@touch $@

# No environment: a folder that the compile check alone puts on a path.
$(CUDA_COMPILER)/.installed: requirements/compiler.txt | $(PY)
	@echo "installing the CUDA compiler of $< into $(@D), 0.3 GB of downloads ..."
	@rm -rf $(@D)/jax_* $(@D)/nvidia*
	@$(PY) $(PIP_INSTALL) --only-binary :all: --no-deps --require-hashes --target $(@D) -r $<
	@echo "installed; $(@D) takes $$(du -sm $(@D) | cut -f1) MB"
	@touch $@

# --- what people run ---

quickstart: $(VENV)/.core  ## install the core and train the small preset on synthetic data
	@$(MAKE) --no-print-directory $(VENV)/.package
	$(PY) -m experiments.train kunlun/small

.PHONY: dev
dev: $(VENV)/.dev $(CUDA_COMPILER)/.installed  ## install the core, the notebooks and the tools of development
	@$(MAKE) --no-print-directory $(VENV)/.package

test: dev  ## everything that a CPU can check, but for the slow tests
	$(call BOUNDED,$(PY)) $(RUN_PYTEST) $(PYTEST)

test-slow: dev  ## the slow tests
	$(call BOUNDED,$(PY)) $(RUN_PYTEST) -m slow $(PYTEST)

faults: dev  ## what damaged files and kills do, in the long form: 1500 damaged inputs, 50 kills on two data sets
	FAULTS=250 KILLS=25 $(call BOUNDED,$(PY)) $(RUN_PYTEST) -m "slow or not slow" tests/faults $(PYTEST)

test-slow-ci:  ## a selection of the slow tests, as .ci/run does
	@$(MAKE) --no-print-directory test-slow PYTEST="$(SLOW_CI)"

test-newest-jax: $(VENV_NEWEST)/.newest  ## the core on the newest jax, in an environment of its own
	@$(VENV_NEWEST)/bin/python $(INSTALL_PACKAGE)
	$(VENV_NEWEST)/bin/python -c 'import jax; print("jax", jax.__version__)'
	$(call BOUNDED,$(VENV_NEWEST)/bin/python) $(RUN_PYTEST) $(NEWEST_TESTS) $(PYTEST)

test-newest-jax-ci:  ## a selection of it, as .ci/run does
	@$(MAKE) --no-print-directory test-newest-jax NEWEST_TESTS="$(NEWEST_CI)"

$(VENV_NEWEST)/.newest: requirements/newest.txt
	@$(MAKE_VENV); make_venv $(VENV_NEWEST)
	@$(INSTALL_LOCK); install_lock $(VENV_NEWEST) $<
	@touch $@

kernels: dev  ## compile every GPU kernel for H100, B200 and (Triton's) A100, L4, H100, no GPU needed
	JAX_PLATFORMS=cpu $(call BOUNDED,$(PY)) -m pallas_kernels.compile_check $(KERNELS)

kernels-ci:  ## a selection of them, as .ci/run does; writes no results
	@$(MAKE) --no-print-directory kernels KERNELS="$(KERNELS_CI)"

lint: dev  ## style, types, and which floor imports which
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(VENV)/bin/lint-imports --no-cache
	$(PY) -m pyright

format: dev  ## mend what ruff can mend
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

# Rows that are there are not measured again, and a run that was stopped goes on: days of a CPU, in pieces, such as
# LEADERBOARD="--rows din --seeds 0".
leaderboard: dev  ## every system and two simple models on KuaiRand-Pure and MovieLens-1M; KUAIRAND=folder MOVIELENS=folder
	@[ -n "$(KUAIRAND)" ] && [ -n "$(MOVIELENS)" ] || { \
	  echo "error: name the folders of the data: make leaderboard KUAIRAND=KuaiRand-Pure MOVIELENS=ml-1m" >&2; exit 1; }
	$(PY) -m experiments.compare leaderboard_kuairand --data.root "$(KUAIRAND)" $(LEADERBOARD)
	$(PY) -m experiments.compare leaderboard_movielens --data.root "$(MOVIELENS)" $(LEADERBOARD)
	$(PY) -m experiments.compare leaderboard_movielens_last --data.root "$(MOVIELENS)" $(LEADERBOARD)
	$(PY) -m experiments.compare_speed leaderboard_kuairand --data.root "$(KUAIRAND)"
	$(PY) -m experiments.compare_speed leaderboard_movielens --data.root "$(MOVIELENS)"
	$(PY) -m experiments.compare_speed leaderboard_movielens_last --data.root "$(MOVIELENS)"

# --- on a machine with a GPU ---

# The machine's own Python with its own jax, torch and triton: nothing is installed. Pure-Python packages that it lacks
# are read from .carry, unpacked there or as wheels; `make carry` fills it on a machine that has an index.
GPU_PYTHON ?= $(or $(PYTHON),python3)
# A checkout of facebookresearch/ads_model_kernel_library, to measure Meta's kernels, too.
ADS_KERNEL_LIBRARY ?=
# Names of pieces, to run these alone, e.g. make gpu GPU_ONLY=scaling_law
GPU_ONLY ?=
CARRY ?= pytest pytest-timeout iniconfig pluggy pygments packaging hypothesis sortedcontainers beartype jaxtyping wadler-lindig einops \
  tyro docstring-parser typeguard typing-extensions tqdm optax
empty :=
space := $(empty) $(empty)

gpu:  ## contract, block sizes and benchmark on a GPU, within 9 minutes; continues where it was cut off
	@PYTHONPATH=$(subst $(space),:,$(strip $(CURDIR) $(CURDIR)/.carry $(wildcard $(CURDIR)/.carry/*.whl))) \
	  $(GPU_PYTHON) -m experiments.gpu $(if $(ADS_KERNEL_LIBRARY),--ads-kernel-library $(ADS_KERNEL_LIBRARY)) \
	  $(if $(GPU_ONLY),--only $(GPU_ONLY))

carry: dev  ## put pure-Python packages that a GPU machine may lack into .carry, as locked
	@for name in $(CARRY); do \
	  $(PY) -m pip freeze --disable-pip-version-check --all | grep -i -E "^$${name//-/[-_.]}==" || echo "$$name"; \
	done > $(VENV)/carry.txt
	$(PY) $(PIP_INSTALL) --upgrade --no-deps --only-binary :all: --target .carry -r $(VENV)/carry.txt

figures: dev  ## draw every picture and table of stored results again
	$(PY) -m experiments.figures

notebooks: dev  ## run the notebooks and store them with their outputs
	@for notebook in notebooks/*.ipynb; do \
	  echo "$$notebook"; \
	  $(PY) -m jupyter nbconvert --to notebook --execute --inplace "$$notebook"; \
	done

# --- locks: names, versions and hashes, no index and no host ---

UV_COMPILE = pip compile --quiet --universal --python-version 3.12 --upgrade --generate-hashes \
  --no-emit-index-url --no-emit-find-links --custom-compile-command "make lock"

$(VENV_LOCK)/bin/uv:
	@$(MAKE_VENV); make_venv $(VENV_LOCK)
	@$(VENV_LOCK)/bin/python $(PIP_INSTALL) uv

lock: $(VENV_LOCK)/bin/uv  ## work out requirements/*.txt anew from pyproject.toml
	$< $(UV_COMPILE) -c requirements/pins.txt pyproject.toml requirements/build.in -o requirements/core.txt
	$< $(UV_COMPILE) -c requirements/pins.txt --extra dev --extra notebooks --extra tensorboard --extra torch --extra triton \
	  pyproject.toml requirements/build.in -o requirements/dev.txt
	$< $(UV_COMPILE) pyproject.toml requirements/build.in requirements/newest.in -o requirements/newest.txt
	$< $(UV_COMPILE) --no-deps requirements/compiler.in -o requirements/compiler.txt

clean:  ## remove environments, caches and builds; runs/ stays
	rm -rf $(VENV) $(VENV_NEWEST) $(VENV_LOCK) $(CUDA_COMPILER) build dist *.egg-info .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
