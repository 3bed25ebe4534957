.DEFAULT_GOAL := help
SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
# These of the shell change what Python does. Proxies and pip's settings stay: the setup needs them.
unexport PYTHONHOME PYTHONPATH PYTHONSTARTUP PYTHONOPTIMIZE PYTHONWARNINGS PYTHONSAFEPATH PYTHONINSPECT
# Without bytecode, each process of a test run compiles what it imports: 13 s of a runner, 1 s of a service.
unexport PYTHONDONTWRITEBYTECODE
MAKEFLAGS += --warn-undefined-variables --no-builtin-rules

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
BENCH_VENV := .venv-bench
BENCH_READY := $(BENCH_VENV)/.ready
LOCALSTRIPE_VENV := .venv-localstripe
LOCALSTRIPE_READY := $(LOCALSTRIPE_VENV)/.ready
STUBS := protos/gen/gateway.binpb
PROTOS := $(shell find protos/stampede -name '*.proto')
SETUP_VENV = command -v '$(PYTHON)' >/dev/null || { echo 'there is no $(PYTHON); name one with make PYTHON=python3.12' >&2; exit 1; }; '$(PYTHON)' deploy/setup_venv.py
PYTEST_ARGS ?=
# Two runners, each with servers and ports of its own. One of them gets all end-to-end tests, which share a mesh.
TWO_RUNNERS := -n 2 --no-loadscope-reorder
BENCH_ARGS ?=
SOAK_ATTEMPTS ?= 500000
SANDBOX_CALLS ?= 20000
CHAOS_SEED ?=
CHAOS_ROUNDS ?=
CHAOS_AT ?=

.PHONY: help
help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  \033[36m%-10s\033[0m %s\n",$$1,$$2} /^##@/{printf "\n%s\n",substr($$0,5)}' $(MAKEFILE_LIST)

##@ Try it
.PHONY: demo up down status logs reset audit
demo: setup ## Run a flash sale through the gateway, then audit its records
	@$(BIN)/python -m deploy.demo

up: setup ## Start the mesh and leave it running (STAMPEDE_PORT=9080 for other ports)
	@$(BIN)/python -m deploy.local up

down: setup ## Stop the mesh; keep its data
	@$(BIN)/python -m deploy.local down

status: setup ## Show the port, state and restarts of each part
	@$(BIN)/python -m deploy.local status

logs: setup ## Follow the logs of all parts
	@$(BIN)/python -m deploy.local logs -f

reset: setup ## Stop the mesh and delete its data
	@$(BIN)/python -m deploy.local reset

audit: setup ## Check the records of a running mesh across all databases and the provider
	@$(BIN)/python -m deploy.audit

##@ Change it
.PHONY: setup check test prove bench soak sandbox-bench chaos stubs
setup: $(READY) $(STUBS) ## Install .venv and generate code (safe to repeat)

test: setup $(LOCALSTRIPE_READY) ## Run all tests on real servers (PYTEST_ARGS=… for a part)
	@$(BIN)/python -m pytest $(or $(strip $(PYTEST_ARGS)),$(TWO_RUNNERS))

prove: setup ## Run the proofs of which make test runs a small budget to their end (PYTEST_ARGS=… for a part)
	@PROVE=1 $(BIN)/python -m pytest -m proof $(PYTEST_ARGS)

check: setup ## Check lint, types, contract and style, without servers
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy services deploy gateway sandbox protos/generate.py
	@cd protos && ../$(BIN)/python lint.py
	@$(BIN)/python -m pytest -q $(TWO_RUNNERS) tests/tidy tests/contract tests/unit tests/sandbox

bench: setup $(BENCH_READY) ## Measure the cost of an order, against an empty RPC, DBOS and Celery
	@$(BIN)/python -m tests.bench $(BENCH_ARGS)

soak: setup ## Check that memory stays flat over SOAK_ATTEMPTS=500000
	@$(BIN)/python -m tests.bench.soak --attempts $(SOAK_ATTEMPTS)

sandbox-bench: setup ## Measure calls a CPU second and memory of the payment sandbox (SANDBOX_CALLS=20000)
	@$(BIN)/python -m tests.bench.sandbox --calls $(SANDBOX_CALLS)

chaos: setup ## Kill processes at seeded points of orders (CHAOS_SEED=1 CHAOS_ROUNDS=60, or CHAOS_AT)
	@CHAOS_SEED=$(CHAOS_SEED) CHAOS_ROUNDS=$(CHAOS_ROUNDS) CHAOS_AT='$(CHAOS_AT)' $(BIN)/python -m tests.chaos

stubs: setup ## Build the wheel of client stubs in dist/
	@$(BIN)/python protos/wheel.py

# A moved folder, a Python that is gone or a changed lock file make .venv anew. The script decides, each time: it takes
# 0.05 s, and changes the file only if it has installed.
$(READY): FORCE
	@$(SETUP_VENV) $(VENV) requirements-dev.lock . protos/gen

# The rivals of the bench are installed apart from production packages.
$(BENCH_READY): FORCE
	@$(SETUP_VENV) $(BENCH_VENV) requirements-bench.lock

# Another stand-in of Stripe, for contract tests. Its licence is not ours, so it runs in a process of its own.
$(LOCALSTRIPE_READY): FORCE
	@$(SETUP_VENV) $(LOCALSTRIPE_VENV) requirements-localstripe.lock

.PHONY: FORCE
FORCE:

$(STUBS): $(READY) protos/generate.py $(PROTOS)
	@$(BIN)/python protos/generate.py
