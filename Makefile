# Everything here works on a machine that has python3 (3.10 or newer) with pip, and make. Variables to set:
#   PYTHON=python3.12          the Python of .venv, and for `make install` the environment to install into
#   TORCH_INDEX=<address>      an index that has CPU builds of torch; otherwise pip's own configuration decides
#   PYTEST="-k tiling"         further words for pytest
#   JOBS=2                     processes that share the tests out, a file to each, of one thread each; 0 for none
PYTHON ?= python3
PINNED_TORCH := $(shell grep '^torch==' constraints.txt)
JOBS ?= 2
VENV := .venv
FLOOR := .venv-floor
STUB := .venv-npu-stub-$(TORCH_NPU)
# Cards are asked for by name (`pytest -m cuda`); all else runs.
EVERYTHING := not cuda and not npu
UNMARKED := not slow and not ranks and not cuda and not npu
# constraints.txt is for 3.11 and newer
PINS = $(shell $(PYTHON) -c 'import sys; print("-c constraints.txt" if sys.version_info >= (3, 11) else "")')
FROM_INDEX := $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX))
WITH := $(if $(EXTRAS),[$(EXTRAS)])

.DELETE_ON_ERROR:
.PHONY: help demo test test-floor test-npu-stub npu-table lint format install wheelhouse clean

help:
	@echo 'make demo [PICTURES="a.png b.jpg"]         make .venv, install, see small models answer, draw and learn (names without spaces)'
	@echo 'make test                                  make .venv, install, run every test that needs no card'
	@echo 'make test-floor                            the unmarked tests on the oldest versions pyproject.toml allows'
	@echo 'make test-npu-stub TORCH_NPU=2.9.0         the real torch_npu on a stand-in runtime, without a card'
	@echo 'make npu-table TORCH_NPU=2.9.0             what it has kernels for, into src/anymix/device/tables'
	@echo 'make lint                                  ruff and mypy; `make format` rewrites what ruff can'
	@echo 'make install [EXTRAS=npu] [WHEELS=folder]  into the environment of PYTHON, whose torch stays as it is'
	@echo 'make wheelhouse ARCH=aarch64 PY=3.11 TORCH=2.7.1   one tar for a machine without a network (TORCH=none:'
	@echo '                                           it has its own) [EXTRAS=npu,serve] [ALSO="numpy<2 pyarrow<26"]'

demo: $(VENV)/.ready
	$(VENV)/bin/anymix demo $(PICTURES)

test: $(VENV)/.ready
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -n $(JOBS) --dist loadfile -m "$(EVERYTHING)" $(PYTEST)

test-floor: $(FLOOR)/.ready
	$(FLOOR)/bin/python -m pytest -m "$(UNMARKED)" $(PYTEST)

# The real torch_npu without a card: tests/npustub/run.py builds what stands in for its runtime. Needs gcc and g++.
test-npu-stub: $(STUB)/.ready
	$(STUB)/bin/python tests/npustub/run.py $(PYTEST)

npu-table: $(STUB)/.ready
	PYTHONPATH=src $(STUB)/bin/python tests/npustub/run.py tests/npustub/tables.py src/anymix/device/tables

lint: $(VENV)/.ready
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

format: $(VENV)/.ready
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

# Debian leaves ensurepip out of python3; pip then installs itself into an empty environment.
%/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and f"anymix needs Python 3.10 or newer, found \
	{sys.version.split()[0]}; type make PYTHON=<a newer python3>")'
	$(PYTHON) -m venv $* || { $(PYTHON) -m venv --clear --without-pip $* && $(PYTHON) -m pip --python $@ install pip; }

# torch first and by itself, so that nothing else chooses its build.
$(VENV)/.ready: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(VENV)/bin/python -m pip install -q $(FROM_INDEX) '$(PINNED_TORCH)'
	$(VENV)/bin/python -m pip install -q $(PINS) -e '.[dev]'
	@touch $@

$(FLOOR)/.ready: pyproject.toml constraints.txt scripts/floors.py | $(FLOOR)/bin/python
	$(FLOOR)/bin/python -m pip install -q $(FROM_INDEX) '$(PINNED_TORCH)'
	$(FLOOR)/bin/python scripts/floors.py > $(FLOOR)/floor.txt
	$(FLOOR)/bin/python -m pip install -q -c $(FLOOR)/floor.txt -e '.[dev]'
	@touch $@

$(STUB)/.ready: pyproject.toml constraints.txt | $(STUB)/bin/python
	@$(if $(TORCH_NPU),,echo 'type make test-npu-stub TORCH_NPU=2.9.0 (a release of torch_npu)'; exit 1)
	$(STUB)/bin/python -m pip install -q $(FROM_INDEX) 'torch==$(firstword $(subst .post, ,$(TORCH_NPU)))'
	$(STUB)/bin/python -m pip install -q --no-deps 'torch_npu==$(TORCH_NPU)'
	grep -v '^torch==' constraints.txt > $(STUB)/pins.txt
	$(STUB)/bin/python -m pip install -q $(if $(PINS),-c $(STUB)/pins.txt) -e '.[dev,npu]'
	@touch $@

install:
	@keep=$$(mktemp) && trap 'rm -f "$$keep"' EXIT && $(PYTHON) scripts/keep_torch.py > "$$keep" && cat "$$keep" && \
	$(if $(TORCH_INDEX),{ grep -q '^torch==' "$$keep" || $(PYTHON) -m pip install $(FROM_INDEX) torch; } &&) \
	$(PYTHON) -m pip install -c "$$keep" $(if $(WHEELS),--no-index --find-links '$(WHEELS)' 'anymix$(WITH)','.$(WITH)')

wheelhouse:
	@$(if $(and $(ARCH),$(PY),$(TORCH)),,echo 'type make wheelhouse ARCH=aarch64 PY=3.11 TORCH=2.7.1 (or TORCH=none)'; exit 1)
	$(PYTHON) scripts/wheelhouse.py --arch $(ARCH) --python $(PY) --torch $(TORCH) --extras '$(EXTRAS)' \
	    $(if $(TORCH_INDEX),--index $(TORCH_INDEX)) $(if $(ALSO),--also $(foreach wanted,$(ALSO),'$(wanted)'))
	$(PYTHON) scripts/check_wheelhouse.py dist/anymix-$(ARCH)-py$(PY)-torch-$(TORCH).tar --extras '$(EXTRAS)'

clean:
	rm -rf $(VENV) $(FLOOR) .venv-npu-stub-* dist build .mypy_cache .ruff_cache .pytest_cache
