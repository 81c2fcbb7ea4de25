# Works with GNU make 3.81 or later and any POSIX shell.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: help course site report slides test quick lab serve bench lint clean

help:
	@echo "make course   install, execute every notebook, build the site with what they show: _site/index.html"
	@echo "make site     build the site from the notebooks as committed"
	@echo "make report   print the story and the appendix of the site: _site/report.pdf, appendix.pdf (Chromium)"
	@echo "make slides   ten slides from the write-up: _site/slides.html, and slides.pdf if Chromium is there"
	@echo "make test     install, check the style, run all tests (the notebooks included)"
	@echo "make quick    the same without the notebooks"
	@echo "make lab      install, open copies of the notebooks in JupyterLab"
	@echo "make serve    install, serve a model on this machine (the first time it is trained, about two minutes)"
	@echo "make bench    measure the speed beside sentence-transformers, the Trainer and four models (some minutes)"
	@echo "make lint     format and check the code without running it"
	@echo "make clean    delete .venv, _build, _site and caches"
	@echo "PYTHON=python3.13 after any of them picks the interpreter (3.11 or later)"

.venv/.installed: pyproject.toml requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "error: Python 3.11 or later is needed, but '$(PYTHON)' is: `$(PYTHON) --version 2>&1`"; \
		echo "       name another one, for example: make $(MAKECMDGOALS) PYTHON=python3.11"; exit 1; }
	@echo "creating .venv with `$(PYTHON) --version`"
	@$(PYTHON) -m venv .venv
	@echo "installing the locked packages into .venv (a few minutes; on Linux some gigabytes, most of them torch)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c requirements.lock -e '.[test,site]'
	@touch $@

course: .venv/.installed
	@echo "executing the notebooks"
	@$(BIN)/python tools/course.py

site: .venv/.installed
	@$(BIN)/python tools/website.py

slides: .venv/.installed
	@$(BIN)/python tools/slides.py

report: .venv/.installed
	@$(BIN)/python tools/report.py

test: .venv/.installed
	@echo "checking the style"
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@echo "running the tests, two at a time, each on one thread"
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

quick: .venv/.installed
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@echo "running the tests without the notebooks and the browser"
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal --ignore tests/test_notebooks.py --ignore tests/test_site.py

lab: .venv/.installed
	@test -d lab || cp -R notebooks lab
	@echo "starting JupyterLab on copies in lab/ (delete it for fresh ones; Ctrl-C twice stops it)"
	@$(BIN)/jupyter lab lab/00_write_up.ipynb

out/served/model.onnx: | .venv/.installed
	@echo "training a model for one epoch, once; python -m mtl_helpers train makes a better one"
	@$(BIN)/python -m mtl_helpers train data/sentences.csv --output out/served --epochs 1
	@$(BIN)/python -m mtl_helpers export out/served
	@rm -rf out/served/checkpoints

serve: out/served/model.onnx
	@$(BIN)/python -m mtl_helpers serve out/served

bench: .venv/.installed
	@for race in encode training predict; do $(BIN)/python -m experiments.benchmark $$race $(BENCH) || exit 1; done

lint: .venv/.installed
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

clean:
	rm -rf .venv _build _site .pytest_cache .ruff_cache .hypothesis *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
