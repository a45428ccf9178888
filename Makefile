# The verbs. `make help` lists them; CI calls the same ones.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
SETUP  := $(VENV)/.setup
BUF    := node_modules/.bin/buf
PROTOS := $(sort $(wildcard protos/weir/*/v1/*.proto))
SERVICE_PROTOS := $(filter-out protos/weir/inference/%,$(PROTOS))
TYPED  := services/*/weir_* clients/python/weir_client deploy/local/weir_local deploy/models/train protos/weir/*/v1/[a-z]*_[a-z]*.py tests

.PHONY: help
help: ## list the verbs
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  %-12s %s\n", $$1, $$2}'

.PHONY: setup
setup: $(SETUP) ## make the virtual environment and install the pinned dependencies

# torch goes first and by itself, from the CPU index of the machine's own pip configuration, so that nothing pulls a CUDA build in.
$(SETUP): pyproject.toml deploy/constraints/dev.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python deploy/install.py --constraints deploy/constraints/dev.txt
	touch $@

$(BUF): package.json package-lock.json
	npm ci --silent --no-audit --no-fund
	touch $@

.PHONY: proto
proto: $(SETUP) ## generate the stubs beside their protos
	PATH="$$PWD/$(BIN):$$PATH" $(BIN)/python -m grpc_tools.protoc -I protos --python_out=protos --mypy_out=quiet:protos $(PROTOS)
	PATH="$$PWD/$(BIN):$$PATH" $(BIN)/python -m grpc_tools.protoc -I protos --grpc_python_out=protos --mypy_grpc_out=quiet:protos $(SERVICE_PROTOS)
