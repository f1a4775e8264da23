# Everything from nothing: `make demo` runs the main job and reports it, `make test` runs the tests,
# `make notebooks` explains the results, `make omniboard` shows the runs of a MongoDB.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python

.PHONY: demo notebooks test test-smp test-ray lint omniboard

$(VENV)/ready: requirements.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet -r requirements.txt
	touch $@

$(VENV)/ready-dev: $(VENV)/ready $(wildcard requirements-*.txt)
	$(VENV)/bin/python -m pip install --quiet -r requirements-dev.txt
	touch $@

# beside .venv, whose packages it sees: torchvision next to a CPU build of torch breaks what imports it
$(VENV)-smp/ready: $(VENV)/ready-dev requirements-smp.txt
	$(VENV)/bin/python -m venv --clear --without-pip $(VENV)-smp
	$(VENV)/bin/python -m pip --python $(VENV)-smp/bin/python install --quiet --no-deps -r requirements-smp.txt
	$(VENV)/bin/python -c 'import sysconfig; p = sysconfig.get_path("purelib"); print(f"import site; site.addsitedir({p!r})")' \
		> $(VENV)-smp/main.pth
	cp $(VENV)-smp/main.pth $(VENV)-smp/lib/python3*/site-packages/
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

# one thread for each of the processes that share the cores: a sixth less time
test: $(VENV)/ready-dev lint test-smp
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -q -rs --durations=8 -n auto --dist loadfile

test-smp: $(VENV)-smp/ready
	OMP_NUM_THREADS=1 $(VENV)-smp/bin/python -m pytest -q -n 2 --dist loadfile -k "smp or segal_camvid or crc_al_voc" \
		tests/test_smp.py tests/test_model.py tests/test_presets.py tests/test_kills.py

# not a part of `make test`: Ray is 240 MB, and starting clusters of it takes minutes
$(VENV)-ray/ready: $(VENV)/ready-dev requirements-cluster.txt
	$(VENV)/bin/python -m pip install --quiet --upgrade --no-deps --target $(VENV)-ray/packages -r requirements-cluster.txt
	touch $@

test-ray: $(VENV)-ray/ready
	PYTHONPATH=$(CURDIR)/$(VENV)-ray/packages $(VENV)/bin/python -m pytest -q -rs tests/test_ray.py

omniboard: $(VENV)/ready-dev
	@$(RUN) -m experiments.omniboard

lint: $(VENV)/ready-dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
