# Every target sets the machine up first: all it needs is Python 3.11 or newer with pip.
#
#   make demo          convert two real models, run them before and after, print one table
#   make test          the quick tests            make test ALL=1     slow ones too
#   make fuzz          the property tests on examples drawn anew; `make test` draws the same ones every time
#   make lint types    ruff, mypy --strict        make format         rewrite in place
#   make bench         every table of docs/benchmarks.md again; takes long, on a machine with nothing else to do
#
# Variables: PYTHON (which interpreter makes .venv), ARGS (passed on to pytest or the demo), JOBS (pytest workers, with
# a thread each: two take half the time of one with two threads, as most of it is Python; 0 is none).

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV   := .venv
PY     := $(VENV)/bin/python
PIP    := $(PY) -m pip --disable-pip-version-check --no-input
STUB   := tests/stubs/torchvision
JOBS   ?= 2
ARGS   ?=

# The stamp is named after what was installed, so that a change of these files, and nothing else, installs again.
INPUTS := pyproject.toml setup.py constraints.txt $(STUB)/setup.py $(STUB)/torchvision_stand_in.py
STAMP  := $(VENV)/.installed-$(shell cat $(INPUTS) | cksum | cut -d' ' -f1)

# Nothing here may reach for a model hub.
export HF_HUB_OFFLINE := 1
export TOKENIZERS_PARALLELISM := false

.PHONY: setup demo bench test fuzz lint format types clean

setup: $(STAMP)

$(STAMP):
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Tersor needs Python 3.11 or newer: make PYTHON=...")'
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PIP) install "$$(grep '^torch==' constraints.txt)"
	$(PIP) install --no-deps "$$(grep '^setuptools==' constraints.txt)"
	$(PIP) install --no-deps --no-build-isolation ./$(STUB)
	$(PIP) install --no-deps -r constraints.txt
	$(PIP) install --no-deps --no-build-isolation -e .
	rm -f $(VENV)/.installed-*
	touch $@

demo: $(STAMP)
	$(PY) examples/demo.py $(ARGS)

bench: $(STAMP)
	$(PY) -m benchmarks.compile
	$(PY) -m benchmarks.operators
	$(PY) -m benchmarks.speed --seconds 10
	$(PY) -m benchmarks.quality --threads 1
	$(PY) -m benchmarks.decoding
	$(PY) -m benchmarks.quantised
	$(PY) -m benchmarks.generator
	$(PY) -m benchmarks.identity

test: $(STAMP)
	$(if $(filter-out 0,$(JOBS)),OMP_NUM_THREADS=1) $(PY) -m pytest $(if $(ALL),-m "") \
		$(if $(filter-out 0,$(JOBS)),-n $(JOBS)) $(ARGS)

fuzz: export HYPOTHESIS_PROFILE := fuzz
fuzz: $(STAMP)
	$(PY) -m pytest -m hypothesis $(ARGS)
	$(PY) -m pytest -m "" tests/codegen/triton/test_kernels.py tests/tersor/test_triton.py $(ARGS)

lint: $(STAMP)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

format: $(STAMP)
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

types: $(STAMP)
	.ci/types

clean:
	rm -rf build dist *.egg-info $(STUB)/build $(STUB)/*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
