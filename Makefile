# Two commands do everything on a fresh machine: `make audit` and `make test`. Each sets up what it needs in .venv.
PYTHON ?= python3
BIN := .venv/bin
RIVALS := results/benchmarks/rivals-venv
# One thread a process: the workers of a run divide the cores among them. No hub is asked for anything.
export OMP_NUM_THREADS ?= 1
export HF_HUB_OFFLINE ?= 1
export PYTHONPATH :=

.PHONY: lock advisories audit serve test soak bench scale check docs format clean s3

.venv/ready: pyproject.toml infra/constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "torch==2.13.0" -c infra/constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c infra/constraints.txt -e ".[jobs,s3,quantised,benchmark,test,check,docs]"
	touch $@

results/shapes: | .venv/ready
	$(BIN)/python -m jobs.shapes out=$@

# The demo: a few hundred images, two methods, four concepts; the last line names the page.
audit: .venv/ready results/shapes
	$(BIN)/python -m jobs.audit --config-name demo

# Questions to the demo in a browser, on all cores; Ctrl-C ends it.
serve: .venv/ready
	env -u OMP_NUM_THREADS $(BIN)/python -m jobs.serve store=results audit=demo

# A file of tests stays in one process, so that what its tests share is made once. Three on two cores: a third of the time
# they wait for processes and storage. In the order of their names, after those marked long: by the number of tests, the
# files with few slow ones would come last.
test: .venv/ready
	$(BIN)/python -m pytest -m "not soak and not gpu" -n 3 --dist loadfile --no-loadscope-reorder

# Long faults and sizes (at most 30 minutes on two cores). Two files at a time, half of which wait for processes, storage and
# the next kill; in the order of their names, which puts none of the longest last.
soak: .venv/ready
	$(BIN)/python -m pytest -m soak -n 2 --dist loadfile --no-loadscope-reorder

# Speed against the floors, the authors' way and the rivals: one run, one page. It wants an idle machine.
bench: .venv/ready $(RIVALS)/ready
	$(BIN)/python -m tests.benchmarks

# How the driver grows with the data, up to a simulated 10^9 samples: one page in results/benchmarks. An hour on an idle core.
scale: .venv/ready
	$(BIN)/python -m tests.benchmarks.scale

# The rivals live apart, with the same torch. kronfluence brings a package named tests, which would hide ours.
$(RIVALS)/ready: tests/benchmarks/rivals.txt infra/constraints.txt
	$(PYTHON) -m venv $(RIVALS)
	$(RIVALS)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps \
	  -r tests/benchmarks/rivals.txt -c infra/constraints.txt
	rm -rf $(RIVALS)/lib/python*/site-packages/tests
	touch $@

# A real S3 server for the tests: Debian's Ceph, 286 MB. Where it cannot be installed this says what is missing and fails;
# the tests then use moto, and name what they could not check.
CEPH_PROGRAMS := ceph ceph-authtool ceph-mon ceph-osd curl monmaptool radosgw radosgw-admin
CEPH_PACKAGES := ceph-common ceph-mon ceph-osd curl radosgw
s3:
	@missing=; for program in $(CEPH_PROGRAMS); do \
	  command -v $$program >/dev/null || missing="$$missing $$program"; \
	done; \
	if [ -z "$$missing" ]; then echo "s3: Ceph is installed"; \
	elif [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  apt-get update -qq && \
	  DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends $(CEPH_PACKAGES); \
	else \
	  echo "s3: missing:$$missing. As root on Debian: apt-get install $(CEPH_PACKAGES)" >&2; exit 1; \
	fi

check: .venv/ready
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/python -m pytest tests/test_layers.py

# The documentation as a site in results/docs, which needs no network. Pages open from the folder; the search needs a server:
# python -m http.server --directory results/docs
docs: .venv/ready
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet
	@echo "site       results/docs/index.html"

# Every package that a node needs, with the hashes of its files: after a change of pyproject.toml or constraints.txt.
# What torch's CUDA build brings stands apart, because the CPU build has no use for it.
TOOLS := results/tools
CUDA := /^[^ ]/ { cuda = /^(torch|triton|nvidia-|cuda-)/ }
lock: $(TOOLS)/ready
	$(TOOLS)/bin/uv pip compile --quiet pyproject.toml --extra jobs --extra s3 --extra quantised -c infra/constraints.txt --generate-hashes \
	  --universal --python-version 3.11 --no-header --no-annotate --no-emit-index-url -o $(TOOLS)/locked.txt
	awk '$(CUDA) !cuda' $(TOOLS)/locked.txt > infra/locked.txt
	awk '$(CUDA) cuda' $(TOOLS)/locked.txt > infra/locked-cuda.txt

# What is known against them; without a network it says that nothing was checked, and fails.
advisories: $(TOOLS)/ready
	$(TOOLS)/bin/python infra/advisories.py

$(TOOLS)/ready:
	$(PYTHON) -m venv $(TOOLS)
	$(TOOLS)/bin/python -m pip install --quiet --disable-pip-version-check uv==0.13.9 pip-audit==2.10.1
	touch $@

format: .venv/ready
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf .venv results
