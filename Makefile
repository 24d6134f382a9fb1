# make demo    trains a supernet on handwritten digits, searches it, and evaluates a winner beside MAX and MIN
# make test    runs the tests
# make lint    checks the style, and which room imports which
# make setup   only installs, the releases that constraints.txt pins
# make audit   asks PyPI whether faults are known of these releases; docs/audit.md explains what it finds
#
# Each of them sets up .venv first, and again when requirements.txt or constraints.txt has changed.
# Another Python than python3: remove .venv, then for instance `make setup PYTHON=python3.12`.

PYTHON ?= python3
VENV := .venv
READY := $(VENV)/ready

.PHONY: demo test lint setup audit

# Repeated, it goes on from the checkpoints and the evaluations in exp/digits.
demo: $(READY)
	$(VENV)/bin/python train.py
	$(VENV)/bin/python search.py
	$(VENV)/bin/python eval.py --arch max --arch min --arch exp/digits/children/macs-50pct/architecture.json

test: $(READY)
	$(VENV)/bin/python -m pytest -n 2 --dist loadfile $(PYTEST_ARGS)

lint: $(READY)
	$(VENV)/bin/python -m ruff check .
	$(VENV)/bin/lint-imports --no-cache

# In an environment of its own, which brings no package into the project's.
audit:
	$(PYTHON) -m venv $(VENV)-audit
	$(VENV)-audit/bin/python -m pip install --disable-pip-version-check --quiet 'pip-audit>=2.9,<3'
	$(VENV)-audit/bin/pip-audit --requirement constraints.txt --no-deps --disable-pip --strict --progress-spinner off \
	  $$(sed -n 's/^| \([A-Z]\{2,\}-[^ ]*\) .*/--ignore-vuln \1/p' docs/audit.md)

setup: $(READY)

$(READY): requirements.txt constraints.txt
	$(if $(shell ($(PYTHON) -c 'import sys; print(sys.version_info >= (3, 11) or "")') 2>/dev/null),,$(error \
	  found $(shell ($(PYTHON) --version || :) 2>&1), expected Python 3.11 or later; name one, as in PYTHON=python3.12))
	$(PYTHON) -m venv $(VENV)
	if nvidia-smi -L 2>/dev/null | grep -q '^GPU'; then cp requirements.txt $(VENV)/requirements.txt; \
	  else sed 's/^jax\[cuda13\]/jax/' requirements.txt > $(VENV)/requirements.txt; fi
	$(VENV)/bin/python -m pip install --disable-pip-version-check -c constraints.txt -r $(VENV)/requirements.txt
	$(VENV)/bin/python -m bignas_jax.kernels.native
	@touch $@
