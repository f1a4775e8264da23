# Everything from nothing: `make demo` runs the main job and reports it, `make test` runs the tests,
# `make notebooks` explains the results, `make omniboard` shows the runs of a MongoDB.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python

.PHONY: demo notebooks test lint omniboard

$(VENV)/ready: requirements.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet -r requirements.txt
	touch $@

$(VENV)/ready-dev: $(VENV)/ready requirements-dev.txt requirements-pretrained.txt
	$(VENV)/bin/python -m pip install --quiet -r requirements-dev.txt
	touch $@

demo: $(VENV)/ready
	$(RUN) active.py with heuristic=bald run=3
	$(RUN) active.py with heuristic=random run=3
	$(RUN) -m analysis.plots results -o results/learning_curves.png
	$(RUN) -m analysis.report results -o results/report.html
	@echo
	@echo 'results/report.html is the page to open. To go on, type'
	@echo '    . .venv/bin/activate'
	@echo '    python active.py with heuristic=entropy run=3        # another strategy, from the same first images'
	@echo '    python active.py with heuristic=bald run=3 cycles=3  # one query more of the run that is done'
	@echo '    python -m analysis.report results -o report.html     # the page of all of them'

notebooks: $(VENV)/ready
	$(RUN) -m analysis.execute results

test: $(VENV)/ready-dev lint
	$(VENV)/bin/python -m pytest -q -rs --durations=8 -n auto --dist loadfile

omniboard: $(VENV)/ready-dev
	@$(RUN) -m experiments.omniboard

lint: $(VENV)/ready-dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
