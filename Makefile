# Two commands do everything: `make demo` and `make test`. Each makes its own virtual environment first.
#   make demo                  the main job: fits, starts a worker, submits pictures, prints what became of them
#   make demo DATA=folder      on pictures of your own (train/interim/<label>, test/interim/<label>)
#   make demo BASE=imagenet    from the real ImageNet weights, where the internet can be reached
#   make demo KEEP=1           leave worker, Valkey and metrics up until Ctrl-C
#   make test                  lint, and all tests but the long ones
#   make test ARGS=…           more for pytest, such as `-n 0`: one file after the other, not three side by side
#   make chaos                 kills, restarts, full disks and hostile pictures under load, some half an hour long
#   make bench                 what is promised in figures, some forty minutes long: a table, which goes to
#                              build/benchmarks.json as well, and a chart of it to build/benchmarks.png
#   make bench-gpu             the same on a GPU, from the tree alone
#   make lint | fix | clean    check the code's form; mend it; remove what these commands made

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
BASE ?= random:0

# Tests mostly wait for servers and worker processes, so that three files at once keep two cores busy. A file stays in
# one process, for its fixtures; which come first is said in tests/conftest.py. Chaos and benchmarks run alone.
SIDE_BY_SIDE := -n 3 --dist loadfile --no-loadscope-reorder

.DEFAULT_GOAL := help
.PHONY: help demo test chaos bench bench-gpu lint fix clean

help:
	@sed -n '/^#/!q;s/^# \{0,1\}//p' Makefile

demo: $(VENV)/demo.installed
	@$(BIN)/python -m deploy.demo --base '$(BASE)' $(if $(DATA),--data '$(DATA)') $(if $(KEEP),--keep)

test: lint
	$(BIN)/pytest $(SIDE_BY_SIDE) $(ARGS)

chaos: $(VENV)/dev.installed
	$(BIN)/pytest -m '' tests/chaos tests/hostile $(ARGS)

bench: $(VENV)/bench.installed
	$(BIN)/pytest -m long tests/benchmarks $(ARGS)

# With a Python that has torch for this GPU, and nothing of ours installed; PYTHON names it.
bench-gpu:
	PYTHON='$(PYTHON)' bash tests/benchmarks/gpu.sh $(ARGS)

lint: $(VENV)/dev.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

fix: $(VENV)/dev.installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) .demo build *.egg-info

$(VENV)/%.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo 'Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11'; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --disable-pip-version-check --quiet --constraint constraints.txt --editable '.[$*]'
	@touch $@

.SECONDARY:
