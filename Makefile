# Every target sets up .venv by itself when it is missing or older than what it is made from.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
READY := .venv/.ready
PART ?= all

# three processes: while one waits for SLURM or Ray, the others compute
TESTS := $(BIN)/python -m pytest --no-loadscope-reorder

.PHONY: demo test test-fast lint bench gpu fuzz clean

demo: $(READY)  ## four trials of the sweep over the self-supervision weights, on this machine
	$(BIN)/python launch/slurm.py --sweep sweeps/loss_weights.yaml --cluster local --follow

# the tests start hundreds of processes, which share the bytecode of our modules
test test-fast: export PYTHONDONTWRITEBYTECODE :=

test: $(READY)  ## all tests; those on a real SLURM where its packages are
	$(TESTS) -n 3

test-fast: $(READY)  ## the quick tests, in three minutes: while editing
	$(TESTS) -n 2 -m "not slow and not slurm"

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: $(READY)  ## measured against baselines in the same run; one part: make bench PART=evaluation
	$(BIN)/python -m tests.benchmarks $(PART)

gpu: $(READY)  ## all that only a real GPU can show, in 8 minutes; one part: make gpu PART=views
	$(BIN)/python -m tests.gpu $(PART)

fuzz: $(READY)  ## odd input for every reader, new each time, for ten minutes
	$(BIN)/python -m tests.fuzz

clean:  ## what can be made again; runs/ stays
	rm -rf .venv build *.egg-info .mypy_cache .ruff_cache .pytest_cache
	find harness svll launch tests -name __pycache__ -type d -prune -exec rm -rf {} +

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed; set PYTHON=/path/to/python3.11" >&2; exit 1; }
	@echo "Installing packages into .venv: about 8 GB, which takes some minutes."
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --no-compile \
		-c constraints.txt -e '.[dev]'
	$(BIN)/python -m compileall -q -j $$(nproc) .venv/lib >/dev/null || true  # pip would use one core
	touch $@
