# Two commands do everything on a fresh machine: `make audit` and `make test`. Each sets up what it needs in .venv.
PYTHON ?= python3
BIN := .venv/bin
# One thread a process: the workers of a run divide the cores among them. No hub is asked for anything.
export OMP_NUM_THREADS ?= 1
export HF_HUB_OFFLINE ?= 1
export PYTHONPATH :=

.PHONY: audit test soak check format clean

.venv/ready: pyproject.toml infra/constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "torch==2.13.0" -c infra/constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c infra/constraints.txt -e ".[jobs,s3,test,check]"
	touch $@

results/shapes: | .venv/ready
	$(BIN)/python -m jobs.shapes out=$@

# The demo: a few hundred images, two methods, four concepts; the last line names the page.
audit: .venv/ready results/shapes
	$(BIN)/python -m jobs.audit --config-name demo

test: .venv/ready
	$(BIN)/python -m pytest -m "not soak and not gpu"

# Long faults and sizes (at most 30 minutes).
soak: .venv/ready
	$(BIN)/python -m pytest -m soak

check: .venv/ready
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright
	$(BIN)/python -m pytest tests/test_layers.py

format: .venv/ready
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf .venv results
