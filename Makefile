# make demo    watch a pretrained model being fine-tuned by several sites
# make test    the test suite                 make slow    the long tests too
# make check   format, lint, types, fresh protobuf code
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export HF_HUB_OFFLINE ?= 1
export HF_HUB_DISABLE_TELEMETRY ?= 1
export TOKENIZERS_PARALLELISM ?= false

.PHONY: demo test slow check format protos quick-benches
demo: $(VENV)/.installed
	$(BIN)/fedpeft simulate

test: $(VENV)/.installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist worksteal

slow: $(VENV)/.installed
	$(BIN)/python -m pytest -m "slow or not slow"

QUICK := bench_strategies compare clinc150 frontier bench_codecs bench_grpc bench_kernels bench_peers bench_wire bench_sizes
quick-benches: $(QUICK:%=quick-%)

quick-%: $(VENV)/.installed
	$(BIN)/python -m simulations.$* --quick

check: $(VENV)/.installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m tests.fresh_protos

format: $(VENV)/.installed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

protos: $(VENV)/.installed
	$(BIN)/python -m tests.fresh_protos --write

$(VENV)/.installed: pyproject.toml constraints.txt
	@echo "installing into $(VENV), once; this takes a few minutes"
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --no-compile --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --no-compile --quiet --disable-pip-version-check -c constraints.txt -e '.[demo,data,flower,tensorboard,dev]'
	touch $@
