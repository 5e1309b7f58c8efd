# `make app` and `make test` set up all they need on a fresh machine; python3 >= 3.11 is all they assume.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: app test test-slow setup chromium lint clean

app: setup
	$(BIN)/python app.py

test: setup chromium
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m pytest -m "not slow" $(PYTEST_ARGS)

test-slow: setup chromium
	$(BIN)/python -m pytest -m slow $(PYTEST_ARGS)

setup: $(VENV)/.ready

# pip compiles bytecode as it installs; our own package is compiled here, so that first starts are fast too.
$(VENV)/.ready: requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "OPD Studio needs Python 3.11 or newer; set PYTHON=/path/to/python3.11."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -r requirements.txt
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	$(BIN)/python -m compileall -q opd app.py
	touch $@

# Browser tests need a Chromium. Where it is missing and cannot be installed they skip, and say why.
chromium:
	@command -v chromium >/dev/null || command -v chromium-browser >/dev/null || \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  echo "Installing Debian's chromium for the browser tests."; \
	  { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
	    chromium fonts-dejavu-core; } >/dev/null || echo "Chromium could not be installed; browser tests will skip."; \
	fi

lint: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache
