# `make demo` and `make test` need Python (3.11 or newer) and make, nothing else: they build .venv themselves.

# The newest Python that runs, of those with the newest JAX first. A shim of pyenv may exist and fail, and pyenv may hold
# a version that it does not select.
ifndef PYTHON
PYTHON := $(shell root="$$(pyenv root 2>/dev/null)/versions"; for python in \
  python3.13 "$$root"/3.13*/bin/python python3.12 "$$root"/3.12*/bin/python python3.11 "$$root"/3.11*/bin/python python3; \
  do "$$python" --version >/dev/null 2>&1 && echo "$$python" && break; done)
endif
VENV := .venv
EXTRAS := video,report,tensorboard,test
INSTALLED := $(VENV)/.installed

# make demo DATA=folder trains on a folder of videos (sub-folders are classes); without it, on the synthetic world.
# The work directory carries the folder's name, so that runs on different data do not meet.
DATA ?=
SUFFIX := $(if $(DATA),-$(shell basename -- "$(DATA)"))
SOURCE := $(if $(DATA),--config.data.source="$(DATA)")
# More flags for the command line, for example ARGS=--config.seed=1
ARGS ?=

.PHONY: help install demo demo-long test test-slow notebooks bench rehearse results sizes lint types clean

help:
	@echo "make demo        train, sample and report in 8 to 16 minutes on 2 cores; DATA=folder for your own videos"
	@echo "make demo-long   the same at more length: about an hour on 2 cores; run it again to resume"
	@echo "make test        the tests; make test-slow for those that take longer"
	@echo "make notebooks   execute the notebooks and keep their outputs; ARGS=notebooks/NAME.ipynb for one of them"
	@echo "make bench       all measurements beside PyTorch and diffusers (installs both into .venv); run it again to go on"
	@echo "make rehearse    the paper's experiments at full size, two steps a stage, from data to samples; on a CPU, slow"
	@echo "make results     docs/results.md and the pages of its studies again, from the stored scores of the studies"
	@echo "make sizes       lines of code beside the bars of this repository"
	@echo "make lint        ruff; make types for pyright (installs it into .venv)"
	@echo "PYTHON=python3.12 picks another Python, WORKDIR=folder another work directory."

install: $(INSTALLED)

$(VENV)/.made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "error: this needs Python 3.11 or newer, and '$(PYTHON)' is `$(PYTHON) --version 2>&1`." >&2; \
	  echo "       Point PYTHON at a newer one: make $(or $(MAKECMDGOALS),install) PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv --clear $(VENV)
	@touch $@

# The stamp is newer than setup.py once everything is in, so an interrupted installation is taken up again.
$(INSTALLED): $(VENV)/.made setup.py pyproject.toml
	@echo "installing into $(VENV): a few minutes the first time"
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -e ".[$(EXTRAS)]"
	@touch $@

demo: WORKDIR ?= runs/demo$(SUFFIX)
demo: $(INSTALLED)
	$(VENV)/bin/pv-vae train --config experiments/demo.py --workdir "$(WORKDIR)" $(SOURCE) $(ARGS)

demo-long: WORKDIR ?= runs/demo-long$(SUFFIX)
demo-long: $(INSTALLED)
	$(VENV)/bin/pv-vae train --config experiments/demo_long.py --workdir "$(WORKDIR)" $(SOURCE) $(ARGS)

test: $(INSTALLED)
	$(VENV)/bin/python -m pytest $(ARGS)

test-slow: $(INSTALLED)
	$(VENV)/bin/python -m pytest -m slow $(ARGS)

notebooks: $(INSTALLED)
	$(VENV)/bin/python notebooks/run.py $(ARGS)

# On two idle cores 23 minutes. Results that are of this very code stay; ARGS=--fresh measures them again.
bench: $(INSTALLED)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -e ".[benchmark,video]"
	$(VENV)/bin/python -m benchmarks --all $(ARGS)
	$(VENV)/bin/python -m benchmarks --page

# One stage after the other, at most 20 GB of memory. It prints what it took; run it again to go on.
rehearse: WORKDIR ?= runs/rehearsal
rehearse: $(INSTALLED)
	$(VENV)/bin/python -m benchmarks.rehearsal --workdir "$(WORKDIR)" $(ARGS)

results: $(INSTALLED)
	$(VENV)/bin/python -m studies.ablation --pages
	$(VENV)/bin/python docs/verdict.py --page

sizes: $(INSTALLED)
	$(VENV)/bin/python -m benchmarks.code_size

lint: $(INSTALLED)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

types: $(INSTALLED)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -e ".[types]"
	$(VENV)/bin/pyright --pythonpath $(VENV)/bin/python

clean:
	rm -rf $(VENV) build dist *.egg-info
