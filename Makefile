# `make help` lists the targets.
.DEFAULT_GOAL := help
.PHONY: help setup run test test-quick lint notebooks lab book clean

# An active environment (conda, venv) that has this clone's package is used as it is; else .venv,
# made with uv if it is there, else with venv and pip.
PYTHON ?= python3
ACTIVE := $(or $(VIRTUAL_ENV),$(CONDA_PREFIX))
HAS_PACKAGE := $(if $(ACTIVE),$(shell "$(ACTIVE)/bin/python" -I -c "from os import getcwd; \
from importlib.util import find_spec as f; s = f('cgan_utils'); \
print(bool(s and s.origin.startswith(getcwd() + '/') and \
all(map(f, ('jupyterlab', 'myst_nb', 'nbval', 'onnxruntime', \
'playwright', 'xdist')))))"))
ifeq ($(HAS_PACKAGE),True)
BIN := $(ACTIVE)/bin
setup:
else
BIN := .venv/bin
setup: .venv/installed
endif

.venv/installed: pyproject.toml
	@echo "Installing PyTorch and JupyterLab into .venv (about 5 GB, a few minutes) ..."
	@if command -v uv >/dev/null; then \
	    uv venv --quiet --allow-existing --python '>=3.11' .venv && \
	    uv pip install --quiet --python .venv/bin/python -e '.[notebooks,book,export,test]'; \
	else \
	    $(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'Python 3.11 or newer is needed')" && \
	    $(PYTHON) -m venv .venv && .venv/bin/pip install --quiet -e '.[notebooks,book,export,test]'; \
	fi
	@touch $@

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 14

run: setup  ## set up, then train and sample: notebooks 01 to 04, results in runs/
	@"$(BIN)/python" notebooks/execute.py --output runs 01 02 03 04
	@echo; echo "Results:"; ls -1 runs/*.ipynb runs/*.pt runs/*.png
	@echo; echo "'make lab' opens the notebooks in JupyterLab."

# Two processes of one thread each: much of the work, importing PyTorch above all, has one thread.
test: setup lint  ## set up, then everything: lint, unit tests, every notebook against its outputs
	OMP_NUM_THREADS=1 "$(BIN)/python" -m pytest -n 2 --dist loadfile --no-loadscope-reorder \
	    --nbval --nbval-current-env --nbval-cell-timeout 3600 notebooks tests

QUICK := not slow and not process and not book and not browser
test-quick: setup  ## the core's tests, under 30 seconds: no classifier, processes, book or browser
	"$(BIN)/python" -m pytest -m "$(QUICK)" tests

lint: setup  ## ruff on .py and .ipynb
	"$(BIN)/ruff" check .
	"$(BIN)/ruff" format --check .

notebooks: setup  ## execute all notebooks in place; commit what it leaves
	@"$(BIN)/python" notebooks/execute.py
	@cp runs/before_after.png notebooks/images/

lab: setup  ## open the notebooks in JupyterLab
	"$(BIN)/jupyter" lab --LabApp.default_url=/lab/tree/notebooks/01_data.ipynb

SITE := site/html
book: setup  ## the notebooks as a static site: open site/html/index.html
	@"$(BIN)/sphinx-build" -b html -E -q -W --keep-going -c book . "$(SITE)"
	@cp "$(SITE)/README.html" "$(SITE)/index.html"

clean:  ## remove the environment and everything made at run time, except the data
	rm -rf .venv runs site *.egg-info
