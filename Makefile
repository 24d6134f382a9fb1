# make demo    trains a supernet on handwritten digits, searches it, and evaluates a winner beside MAX and MIN
# make test    runs the tests
# make lint    checks the style, and which room imports which
# make docs    writes a page for each module, from the docstrings, into build/docs
# make setup   only installs, the releases that constraints.txt pins
# make results reruns what the README's results rest on, but for what is there: days, or RESULTS_ARGS="curves"
# make audit   asks PyPI whether faults are known of these releases; docs/audit.md explains what it finds
#
# make gpu-programs GPU_ARGS="--space bignas"    compiles all programs for GPUs that are not here, and counts their bytes
# make gpu-check       a small part of it, in minutes: do the programs and the kernels compile, and who reduces?
#
# Each of them sets up .venv first, and again when requirements.txt or constraints.txt has changed. GPU programs are
# compiled in .venv-gpu, which has JAX for CUDA, and Python 3.12 if that is here: it runs the newest JAX.
# Another Python than python3: remove .venv, then for instance `make setup PYTHON=python3.12`.

PYTHON ?= python3
VENV := .venv
READY := $(VENV)/ready
GPU_PYTHON ?= $(shell for p in python3.12 python3.13 $$HOME/.pyenv/versions/3.12*/bin/python3.12 $(PYTHON); do \
  if $$p -c 'import ensurepip' 2> /dev/null; then echo $$p; break; fi; done)
GPU_VENV := .venv-gpu
GPU_READY := $(GPU_VENV)/ready

.PHONY: demo test lint docs setup audit results gpu-programs gpu-check

# Repeated, it goes on from the checkpoints and the evaluations in exp/digits.
demo: $(READY)
	$(VENV)/bin/python train.py
	$(VENV)/bin/python search.py
	$(VENV)/bin/python eval.py --arch max --arch min --arch exp/digits/children/macs-50pct/architecture.json

test: $(READY)
	$(VENV)/bin/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

lint: $(READY)
	$(VENV)/bin/python -m ruff check .
	$(VENV)/bin/lint-imports --no-cache

docs: $(READY)
	$(VENV)/bin/python docs/build_pages.py build/docs

gpu-programs: $(READY) $(GPU_READY)
	$(GPU_VENV)/bin/python benchmarks/gpu_programs.py $(GPU_ARGS)

GPU_CHECK := $(GPU_VENV)/bin/python benchmarks/gpu_programs.py --no-peer --quick
gpu-check: $(GPU_READY)
	$(GPU_CHECK) --space digits --programs biggest random-16 update
	$(GPU_CHECK) --space digits --topology 1x1x8 --programs smallest random-6 update score-6 calibrate-6
	$(GPU_CHECK) --space bignas --programs kernels-biggest kernels-random-192
	$(GPU_CHECK) --space attentive_nas --programs kernels-biggest --device a100

results: $(READY)
	benchmarks/results.sh $(RESULTS_ARGS)

# In an environment of its own, which brings no package into the project's. A mirror of packages may have no data on faults.
AUDIT_DATA := https://pypi.org/pypi/pip/25.0/json
audit:
	$(PYTHON) -m venv $(VENV)-audit
	$(VENV)-audit/bin/python -m pip install --disable-pip-version-check --quiet 'pip-audit>=2.9,<3'
	@$(VENV)-audit/bin/python -c 'import requests; requests.get("$(AUDIT_DATA)", timeout=30).json()["vulnerabilities"]' \
	  2> /dev/null || { echo "make audit: nothing was audited: found no data on faults at $(AUDIT_DATA), expected PyPI's" \
	  "own service (mirrors of packages do not have it): run it from a network that reaches pypi.org"; exit 1; }
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

$(GPU_READY): requirements.txt constraints.txt
	$(GPU_PYTHON) -m venv $(GPU_VENV)
	grep -E '^(jax|flax|optax|numpy|absl-py|ml_collections|tqdm)\b' requirements.txt > $(GPU_VENV)/requirements.txt
	$(GPU_VENV)/bin/python -m pip install --disable-pip-version-check -c constraints.txt -r $(GPU_VENV)/requirements.txt
	@touch $@
