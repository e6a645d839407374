# `make help` lists the targets. Each one makes what it needs.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: book test lint serve fetch colab colab-test course slides figures pdf archive solutions-test new-chapter linkcheck results bench lock newest clean help

# One thread: the networks are small, and on a busy machine two threads wait for each other.
book: $(INSTALLED) ## execute every chapter and build the pages
	@OMP_NUM_THREADS=1 $(BIN)/python book/_scripts/build.py

# One run for everything: unit tests, doctests, every notebook cell, the book's frame, the pages in
# a browser. One thread each, because two workers and their kernels share the cores.
test: book ## run all tests (builds the book first if it is stale)
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadscope \
	  --doctest-modules --ignore-glob='*/conftest.py' pilcro tests \
	  --nbval-lax --nbval-sanitize-with book/_scripts/nbval-sanitize.cfg $(wildcard book/*.ipynb) \
	  --cov=pilcro --cov-report=term-missing:skip-covered --cov-fail-under=95

lint: $(INSTALLED) ## check style, format and spelling
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/codespell book pilcro tests benchmarks *.md

serve: book ## serve the pages on this machine, rebuild them when a source changes
	@$(BIN)/python book/_scripts/serve.py

fetch: $(INSTALLED) ## download the full data sets (not needed to build the book)
	@$(BIN)/pilcro fetch --all

colab: $(INSTALLED) ## derive the Colab notebooks from the chapters
	@$(BIN)/python book/_scripts/colab.py

colab-test: $(INSTALLED) ## run the Colab notebooks in an environment like Colab's
	@OMP_NUM_THREADS=1 PILCRO_TEST_COLAB=1 $(BIN)/python -m pytest -q tests/book/test_colab_runs.py

course: book ## derive notebooks for students, answers, assignments for nbgrader, and slides
	@$(BIN)/python book/_scripts/course.py

slides: book ## derive slides from the chapters, for reveal.js
	@$(BIN)/python book/_scripts/slides.py

figures: $(INSTALLED) ## draw the figures of all chapters as SVG and PNG (CHAPTERS=... for some)
	@OMP_NUM_THREADS=1 $(BIN)/python book/_scripts/figures.py $(CHAPTERS)

pdf: book ## make one PDF, with LaTeX where TeX is there, else from the printed pages
	@$(BIN)/python book/_scripts/pdf.py

archive: book ## pack the pages into a zip file that works without a network
	@cd _build && ../$(BIN)/python -m zipfile -c pilcro-book.zip html
	@echo _build/pilcro-book.zip

solutions-test: book ## every solution passes its check, every stub fails it politely
	@$(BIN)/python -m pytest -q tests/book/test_solutions.py

new-chapter: $(INSTALLED) ## begin a chapter: make new-chapter NAME=my_topic
	@$(BIN)/python book/_scripts/new_chapter.py $(NAME)

linkcheck: $(INSTALLED) ## ask every outside link of the book for an answer (needs the network)
	@$(BIN)/jupyter-book build . --builder linkcheck --path-output _build/linkcheck

results: $(INSTALLED) ## complete data/results (delete a file there to have it made anew)
	@OMP_NUM_THREADS=1 $(BIN)/python -m pilcro.experiments.zoo
	@OMP_NUM_THREADS=1 $(BIN)/python benchmarks/closed_form_cost.py --full
	@OMP_NUM_THREADS=1 $(BIN)/python benchmarks/penalty_cost.py --full
	@$(BIN)/pilcro fetch cifar10
	@$(BIN)/pilcro sweep lab --folder data/results/lab
	@$(BIN)/pilcro sweep neighbours --folder data/results/neighbours

bench: $(INSTALLED) ## run benchmarks/*.py: ratios of times, measured side by side
	@set -e; for file in $(sort $(wildcard benchmarks/[a-z]*.py)); do \
	  echo "== $$file"; OMP_NUM_THREADS=1 $(BIN)/python $$file; done

lock: $(INSTALLED) ## raise the pins in requirements.txt to the newest versions that agree
	@$(BIN)/pip install -q uv
	@UV_CUSTOM_COMPILE_COMMAND="make lock" $(BIN)/uv pip compile --quiet --upgrade --universal \
	  --python-version 3.11 --no-annotate --extra book pyproject.toml -o requirements.txt

# In a clone, so that neither the pins nor .venv change here.
newest: ## run the tests with the newest packages that pyproject.toml allows
	@rm -rf _build/newest
	@git clone -q . _build/newest
	@cd _build/newest && sed -i '/^\[tool.uv\]/,/^]/d' pyproject.toml && $(MAKE) lock \
	  && git --no-pager diff -U0 requirements.txt && $(MAKE) test

$(INSTALLED): requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  found=$$($(PYTHON) --version 2>/dev/null) || found=missing; \
	  echo "make: the book needs Python 3.11 or newer, and $(PYTHON) is $$found." \
	    "Try: make PYTHON=python3.11 ..." >&2; exit 1; }
	@echo "Installing the pinned packages into .venv (some minutes the first time)"
	@$(PYTHON) -m venv .venv
	@$(BIN)/pip install -q --disable-pip-version-check -r requirements.txt
	@$(BIN)/pip install -q --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

clean: ## remove everything that was made but .venv
	@rm -rf _build .pytest_cache .hypothesis .ruff_cache .coverage .coverage.*
	@find book pilcro tests benchmarks -name __pycache__ -o -name .ipynb_checkpoints \
	  2>/dev/null | xargs rm -rf

help: ## this list
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/\1\t\2/' \
	  | awk -F '\t' '{ printf "  make %-15s %s\n", $$1, $$2 }'
