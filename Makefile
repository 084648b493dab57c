# skyray: every target sets up what it needs; nothing else has to be typed first.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
FILES  ?=
BUNDLE ?= demo/bundle
MUTATIONS ?= 50000

.PHONY: setup demo test test-fast differential fuzz lint format docs bench serve clean help

help:            ## this list
	@grep -hE '^[a-z-]+:.*##' Makefile | sed 's/:.*## */\t/' | expand -t 14

setup: $(READY)  ## make .venv with the exact versions of requirements.lock

# --no-deps: the lock is complete, and a resolver would only add to it.
$(READY): requirements.lock pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --no-deps -r requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation -e .
	touch $@

demo: $(READY)   ## mock survey → model → catalogue → endpoint; FILES=DIR adds your own spectra
	$(BIN)/python jobs/demo.py --out demo $(if $(FILES),--files "$(FILES)")

# Two processes: the tests of the shared Ray, and the others, whose report follows.
test: $(READY)   ## all tests
	@mkdir -p results
	@$(BIN)/python -m pytest -m "not ray" > results/tests.log 2>&1 & others=$$!; \
	  trap "kill $$others" INT TERM; \
	  $(BIN)/python -m pytest -m ray; failed=$$?; \
	  wait $$others || failed=1; \
	  cat results/tests.log; exit $$failed

test-fast: $(READY) ## tests that take seconds
	$(BIN)/python -m pytest -m "not slow"

differential: $(READY) ## 50,000 random files a format against other readers of it
	SKYRAY_EXAMPLES=50000 $(BIN)/python -m pytest -s --timeout 14400 tests/readers/test_*_differential.py

fuzz: $(READY)   ## 50,000 mutations of good files a decoder of foreign bytes
	$(BIN)/python benchmarks/fuzz.py --mutations $(MUTATIONS) --json results/fuzz.json

lint: $(READY)   ## style and import rules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(READY) ## rewrite in house style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(READY)   ## the pages that are made from the code
	$(BIN)/python -m skyray.records.reasons docs/refusals.md

bench: $(READY)  ## the short benchmarks; tables and JSON in results/ (long ones: see benchmarks/)
	@for name in ingest train_overhead; do \
	  $(BIN)/python benchmarks/$$name.py --json results/$$name.json || exit 1; done

serve: $(READY)  ## HTTP service of BUNDLE (default: the demo's) on 127.0.0.1:8000
	$(BIN)/skyray serve --bundle $(BUNDLE)

clean:           ## remove results, not the environment
	rm -rf demo results .pytest_cache .ruff_cache
