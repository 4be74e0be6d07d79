# make setup: the environment in .venv; make test: everything that is fast; make demo: the whole loop on drawn faces;
# make docs: the documentation into site/; make lint: ruff and mypy; make help: this text;
# make test-faults: kills and servers that fail; make test-slow: those and all else that takes longer, an hour; make
# bench: labelling speed, an hour or two of an idle machine; with CROPS=FILE.parquet also on the JPEGs in its column
# image; make bench-ledger: the ledger up to 10⁸ images, 10 GB of disk; make bench-selection: every rule up to 10⁷
# images, 1 GB; make bench-heads: heads on up to 10⁶ embeddings, 3 GB of disk; make bench-backbones: which of timm's
# families can be a backbone at which size; make bench-training: training speed from memory and from a stream, and
# memory; make bench-ssl: semi-supervised methods on FER+ in DATA, a day of two cores, goes on where it stopped; with
# SSL="--device cuda --processes 6" on a GPU; make bench-ssl-quick: four of them, half an hour.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DEMO ?= demo-out
DATA ?= ../shared/data
SSL ?=
CROPS ?= $(wildcard ../shared/data/lfw_unlabeled.parquet)

.PHONY: help setup docs test test-faults test-slow lint demo bench bench-ledger bench-selection bench-heads bench-backbones bench-training bench-ssl bench-ssl-heads bench-ssl-quick clean

help:
	@sed -n '/^#/!q; s/^# //p' $(firstword $(MAKEFILE_LIST))

setup: $(STAMP)

# torch first: building deepspeed looks for it.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip -c constraints.txt
	$(BIN)/python -m pip install --quiet -c constraints.txt torch torchvision
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[test]'
	touch $(STAMP)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: lint
	$(BIN)/python -m pytest -m 'not slow and not gpu'

test-faults: $(STAMP)
	$(BIN)/python -m pytest -m 'slow and fault'

test-slow: $(STAMP)
	$(BIN)/python -m pytest -m slow

docs: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

demo: $(STAMP)
	$(BIN)/python examples/demo.py $(DEMO)

# The peers are not part of the environment.
bench: $(STAMP)
	$(BIN)/python -m pip install --quiet -c constraints.txt -r benchmarks/peers.txt
	$(BIN)/python -m benchmarks.labeling.compare
	$(BIN)/python -m benchmarks.labeling.compare --s3 --sizes 2000 12000
	$(BIN)/python -m benchmarks.labeling.compare --backbone resnet18 --sizes 2000 12000 --contestants ray-fer "bare loop"
	$(if $(CROPS),$(BIN)/python -m benchmarks.labeling.compare --crops $(CROPS))
	$(BIN)/python -m benchmarks.labeling.compare_incremental
	$(BIN)/python -m benchmarks.labeling.overhead
	$(BIN)/python -m benchmarks.labeling.simulated_gpus
	$(BIN)/python -m benchmarks.labeling.kill_loss

bench-ledger: $(STAMP)
	$(BIN)/python -m benchmarks.ledger

bench-selection: $(STAMP)
	$(BIN)/python -m benchmarks.selection

bench-heads: $(STAMP)
	$(BIN)/python -m benchmarks.heads

bench-backbones: $(STAMP)
	$(BIN)/python -W ignore -m benchmarks.backbones

bench-training: $(STAMP)
	$(BIN)/python -m benchmarks.training.throughput
	$(BIN)/python -m benchmarks.training.stream
	$(BIN)/python -m benchmarks.training.zero_memory

bench-ssl: $(STAMP)
	$(BIN)/python -m benchmarks.ssl.run $(DATA) $(SSL)
	$(BIN)/python -m benchmarks.ssl.run $(DATA) $(SSL) --budgets 0.33 0.1 --methods supervised pseudo-label flexmatch softmatch "noisy student" ours
	$(BIN)/python -m benchmarks.ssl.run $(DATA) $(SSL) --lfw --methods pseudo-label softmatch ours

# The features of all faces are computed once, into CACHE; PRETRAINED is a folder of nets.
bench-ssl-heads: $(STAMP)
	$(BIN)/python -m benchmarks.ssl.features $(DATA) $(PRETRAINED) --cache $(CACHE)
	$(BIN)/python -m benchmarks.ssl.heads $(CACHE)

bench-ssl-quick: $(STAMP)
	$(BIN)/python -m benchmarks.ssl.run $(DATA) $(SSL) --quick

clean:
	rm -rf $(VENV) $(DEMO) site build dist .mypy_cache .ruff_cache .pytest_cache
