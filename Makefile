# What one does with a checkout. Every target says what it does.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

CARGO ?= cargo
# Absolute, since tests change their directory.
TARGET := $(abspath $(or $(CARGO_TARGET_DIR),target))
# Makes the Python environment if there is none and leaves its folder of commands in the shell variable `bin`; what is
# said on the way goes to stderr.
PYTHON_ENV = python=$$(scripts/python-env.sh | tee >(cat >&2) | tail -n 1); bin=$$(dirname "$$python")

# Writes the header of the C API; a workspace of its own.
HEADER = $(CARGO) run --quiet --locked --target-dir "$(TARGET)" --manifest-path crates/capi/header/Cargo.toml --

.PHONY: help packages setup demo build python wheels docs reference picture header test test-rust test-python test-checkpoints test-adapters test-operators onnx-cases opinfo operators sweep instructions test-golden test-gpu test-s3 test-serve test-fleet test-inspector test-notebook race fuzz peers bless format lint semver

help: ## list the targets
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z0-9-]+):.*## (.*)/  make \1\t\2/' | expand -t 22

packages: ## system packages that the other targets need, as root or with sudo
	@CARGO="$(CARGO)" scripts/system-packages.sh cc c++ curl git python-venv

setup: packages ## install the regraft command, and a Python environment with PyTorch and the package regraft
	@echo "== installing the regraft command"
	$(CARGO) install --locked --path crates/cli
	@echo "== making the Python environment, and installing the package into it"
	@$(PYTHON_ENV); \
	PATH="$$bin:$$PATH" "$$python" -m pip install --quiet --no-deps --no-build-isolation .; \
	echo "== done: \`regraft --help\`, and \`import regraft\` with $$python"

demo: packages ## sentence embeddings: compile, bind, run, refit, refit back; no PyTorch needed
	@echo "== building the demo"
	$(CARGO) build --release --locked -p regraft-demo
	@echo "== fetching trained weights (once)"
	@model=$$(demo/fetch.sh | tee >(cat >&2) | tail -n 1); \
	echo "== running"; \
	"$(TARGET)/release/regraft-demo" demo "$$model"

build: ## build the command, optimized
	@echo "== building"
	$(CARGO) build --release --locked -p regraft-cli

python: ## build the wheel of the Python package, and unpack it to target/python for PYTHONPATH
	@echo "== building the Python package"
	@$(PYTHON_ENV); \
	rm -rf "$(TARGET)/wheels"; \
	"$$bin/maturin" build --release --locked --interpreter "$$python" --out "$(TARGET)/wheels"; \
	"$$python" -m pip install --quiet --disable-pip-version-check --no-deps --upgrade \
		--target "$(TARGET)/python" "$(TARGET)"/wheels/regraft-*.whl

test: packages test-rust test-python test-operators onnx-cases test-s3 ## all tests; installs what they need, as root or with sudo

test-rust: ## tests in Rust: units, conformance fixtures, command line
	@echo "== testing in Rust"
	@if $(CARGO) nextest --version >/dev/null 2>&1; then \
		$(CARGO) nextest run --workspace --locked && $(CARGO) test --workspace --locked --doc; \
	else \
		$(CARGO) test --workspace --locked; \
	fi

test-python: build python ## tests of the command and of the Python package against PyTorch
	@echo "== testing against PyTorch"
	@$(PYTHON_ENV); $(OVERLAY); \
	export PYTHONPATH="$(TARGET)/python:$$(overlay parallel requirements/parallel.txt "2 MB")"; \
	REGRAFT_BIN="$(TARGET)/release/regraft" "$$python" -m pytest -q --numprocesses 2 --dist loadfile tests

test-adapters: build ## 300 generated adapters against PEFT
	@echo "== testing generated adapters"
	@$(PYTHON_ENV); \
	REGRAFT_GENERATED=300 REGRAFT_BIN="$(TARGET)/release/regraft" "$$python" -m pytest -q tests/test_generated_adapters.py

# What runs the programs of PyTorch's operator database; built with the features of the whole workspace, as tests are, so that nothing is
# compiled twice.
OPINFO = $(CARGO) build --quiet --locked --workspace --example opinfo; "$(TARGET)/debug/examples/opinfo"

test-operators: ## a sample of each operator of PyTorch's database against PyTorch
	@echo "== exporting a sample of each operator"
	@$(PYTHON_ENV); "$$python" tests/opinfo/export.py "$(TARGET)/opinfo-few" --samples 1 --dtypes f32 2>/dev/null
	@echo "== running them"
	@$(OPINFO) "$(TARGET)/opinfo-few" --expected tests/opinfo/refused.tsv | tail -n 20

onnx-cases: ## the node cases of the onnx package
	@echo "== running the node cases of ONNX"
	@$(PYTHON_ENV); OMP_NUM_THREADS=1 "$$python" tests/onnx_cases/export.py "$(TARGET)/onnx-cases" 2>/dev/null
	@$(OPINFO) "$(TARGET)/onnx-cases" --expected tests/onnx_cases/refused.tsv --results "$(TARGET)/onnx.tsv" | grep -v '^refused'

opinfo: ## all samples of PyTorch's operator database, in five dtypes; resumes where it was stopped
	@echo "== exporting samples (ten minutes)"
	@$(PYTHON_ENV); "$$python" tests/opinfo/export.py "$(TARGET)/opinfo" 2>/dev/null
	@echo "== running them"
	@$(OPINFO) "$(TARGET)/opinfo" --expected tests/opinfo/refused.tsv --results "$(TARGET)/opinfo.tsv" | grep -v '^refused'

operators: opinfo onnx-cases ## write docs/operators.md
	@$(CARGO) build --quiet --locked --workspace --example operators
	@$(PYTHON_ENV); "$$python" tests/opinfo/operators.py "$(TARGET)/debug/examples/operators" "$(TARGET)/opinfo.tsv" \
		"$(TARGET)/onnx.tsv" docs/operators.md 2>/dev/null

# What is on PYTHONPATH beside the environment: the package, and folders of scripts/overlay.sh.
OVERLAY = overlay() { scripts/overlay.sh "$$@" | tee >(cat >&2) | tail -n 1; }

sweep: python ## small models of every family of timm, torchvision, transformers, diffusers; resumes where it was stopped; writes docs/models.md
	@$(PYTHON_ENV); $(OVERLAY); \
	export PYTHONPATH="$(TARGET)/python:$$(overlay sweep requirements/sweep.txt "170 MB")"; \
	"$$python" bench/sweep/run.py "$(TARGET)/sweep.jsonl" --jobs 2; \
	"$$python" bench/sweep/page.py "$(TARGET)/sweep.jsonl" docs/models.md

instructions: build ## instructions of the main CPU kernels, next to those in docs/performance.md
	@scripts/system-packages.sh valgrind
	@$(PYTHON_ENV); "$$python" bench/instructions.py "$(TARGET)/release/regraft"

test-golden: python ## trained models from packages against what their own libraries compute
	@$(PYTHON_ENV); $(OVERLAY); \
	export PYTHONPATH="$(TARGET)/python:$$(overlay golden requirements/golden.txt "300 MB")"; \
	GOLDEN_OLDER=$$(overlay golden-older requirements/golden-older.txt "20 MB"); export GOLDEN_OLDER; \
	"$$python" -m pytest -q tests/golden_models.py

test-checkpoints: python ## 300 generated checkpoints against PyTorch
	@echo "== trying generated checkpoints"
	@$(PYTHON_ENV); \
	REGRAFT_CASES=300 PYTHONPATH="$(TARGET)/python" "$$python" -m pytest -q tests/test_generated_checkpoints.py

test-gpu: ## the conformance suite on an NVIDIA GPU, where there is one
	@if ! nvidia-smi >/dev/null 2>&1; then echo "skipped: there is no NVIDIA GPU"; exit 0; fi; \
	echo "== testing on a GPU"; \
	REGRAFT_TEST_DEVICE=cuda:0 $(CARGO) test --locked -p regraft-conformance \
		--test fixtures --test generations --test adapters --test keep_sources --test scenarios

test-s3: ## the object cache against a server that speaks S3, on this machine
	@echo "== building the command with the object cache"
	$(CARGO) clippy --locked -p regraft-cli --features object-cache -- -D warnings
	@echo "== testing the object cache"
	@CARGO="$(CARGO)" scripts/s3-test.sh

test-serve: build ## `regraft serve` with the clients of Triton and KServe, over HTTP and gRPC; what is in deploy/
	@echo "== testing the server with the clients that people use"
	@REGRAFT_BIN="$(TARGET)/release/regraft" scripts/serve-test.sh

test-fleet: build python ## a fleet on Ray Serve: a cluster of several processes of which some are killed
	@echo "== testing a fleet on Ray Serve"
	@REGRAFT_BIN="$(TARGET)/release/regraft" PYTHONPATH="$(TARGET)/python" scripts/fleet-test.sh

test-inspector: build ## the inspector's page in headless Chromium, on a screen and on a phone
	@echo "== testing the inspector's page"
	@REGRAFT_BIN="$(TARGET)/release/regraft" scripts/inspector-test.sh

test-notebook: python ## progress and reports in a notebook of JupyterLab in headless Chromium
	@echo "== testing in a notebook"
	@PYTHONPATH="$(TARGET)/python" scripts/notebook-test.sh

race: ## runs, refits and variants on real threads under ThreadSanitizer
	@echo "== looking for races"
	REGRAFT_STRESS=400 scripts/race.sh

fuzz: ## each fuzz target for a minute; see fuzz/README.md
	@echo "== fuzzing"
	@for target in pickle torch_old names adapter onnx safetensors pt2 weights engine engine_sealed cache_entry ir_text request request_grpc; do \
		echo "== $$target"; scripts/fuzz.sh "$$target" 60; \
	done

wheels: packages ## wheels for x86-64 and aarch64 that need no Rust, in target/manylinux
	@scripts/wheels.sh "$(TARGET)/manylinux"

docs: ## the site of the documentation, in target/site; fails on warnings and on links that lead nowhere
	@echo "== building the documentation"
	@python=$$(scripts/small-env.sh docs requirements/docs.txt "170 MB" | tee >(cat >&2) | tail -n 1); \
	NO_MKDOCS_2_WARNING=1 "$$python" -m mkdocs build --site-dir "$(TARGET)/site"

reference: build python ## write docs/reference from `--help` and docstrings
	@$(PYTHON_ENV); PYTHONPATH="$(TARGET)/python" "$$python" scripts/reference.py "$(TARGET)/release/regraft"

picture: python ## the picture of the README: measures latency while weights change, and draws it
	@$(PYTHON_ENV); PYTHONPATH="$(TARGET)/python" "$$python" bench/picture.py

peers: python ## Regraft next to ONNX Runtime, OpenVINO and PyTorch on this machine; resumes where it was stopped (target/peers.json)
	@$(PYTHON_ENV); PYTHONPATH="$(TARGET)/python" "$$python" bench/peers/run.py --threads 1 2 \
		--state "$(TARGET)/peers.json" --svg "$(TARGET)/peers.svg"

bless: ## rewrite the golden files of the passes; look at the diff before committing
	@echo "== rewriting golden files"
	REGRAFT_BLESS=1 $(CARGO) test --locked -p regraft-compile --test passes
	@git --no-pager diff --stat -- crates/compile/tests/passes

header: packages ## the header of the C API, from its sources
	$(HEADER)

format: ## format the files in Rust and Python
	$(CARGO) fmt --all
	@$(PYTHON_ENV); \
	"$$bin/ruff" format .; "$$bin/ruff" check --fix --select I .

semver: ## the API of the published crates next to that of the last release (a tag v*, or REGRAFT_BASELINE=REV)
	@CARGO="$(CARGO)" CARGO_TARGET_DIR="$(TARGET)" scripts/semver.sh

lint: packages ## formatting, clippy, documentation, crate dependencies, types
	@echo "== formatting"
	$(CARGO) fmt --all --check
	@echo "== clippy"
	$(CARGO) clippy --workspace --all-targets --locked -- -D warnings
	@echo "== documentation"
	RUSTDOCFLAGS=-Dwarnings $(CARGO) doc --workspace --no-deps --locked
	@echo "== header of the C API"
	$(HEADER) --check
	@echo "== crate dependencies"
	$(CARGO) run --quiet --locked -p xtask -- check
	@echo "== Python"
	@$(PYTHON_ENV); \
	"$$bin/ruff" check .; "$$bin/ruff" format --check .; "$$bin/mypy"
