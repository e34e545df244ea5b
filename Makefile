# make setup | demo | test | check | bench | lock
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
export TOKENIZERS_PARALLELISM := false

.PHONY: setup demo test check format bench lock clean

setup: $(STAMP)

$(STAMP): requirements.lock pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || \
	  { echo "$(PYTHON) is not Python 3.11, 3.12 or 3.13; name one that is: make setup PYTHON=python3.12"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-compile \
	  --require-hashes -r requirements.lock
	@# pip would compile on one core. A few packages contain files that are not valid in this Python version, or that
	@# Python 3.12 and later warn about.
	@$(BIN)/python -W ignore -m compileall -q -j 0 .venv/lib/python*/site-packages >/dev/null || true
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $(STAMP)

demo: setup
	$(BIN)/trivium serve --demo

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# Two processes with one thread each, because tests are many small computations. A crash ends the run: xdist would start
# another process and might then wait forever for tests that were lost. Tests start hundreds of processes, and each would
# compile its modules again if PYTHONDONTWRITEBYTECODE were set.
test: check
	PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses 2 --dist loadscope --max-worker-restart 0

bench: setup
	$(BIN)/python -m benchmarks

# Needs uv (https://docs.astral.sh/uv). The lock has names, versions and digests, but no index address.
lock:
	uv pip compile pyproject.toml --extra all --extra dev --generate-hashes --python-version 3.11 \
	  --python-platform x86_64-manylinux_2_28 --no-header --no-annotate --quiet --output-file requirements.lock

clean:
	rm -rf .venv build *.egg-info
