# Everything runs in .venv, made here with whatever python3 is (3.10 to 3.12): `make PYTHON=python3.12 test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# Threads of the numeric libraries while tests run side by side.
JOBS ?= 2

# What `make zoo` looks at: ONLY="efficientvit_*" FORMATS=onnx
ONLY ?=
FORMATS ?= onnx,coreml,tflite

# The short protocol of the table in docs/latency.md that this kind of machine can play.
LATENCY := efficientvit_m0 elevit --format onnx,torch --seconds 0.5 --warmup 0.2 --no-memory --fresh

.PHONY: latency latency-check demo test test-slow check format bench index zoo docs clean help
.DEFAULT_GOAL := help

help:
	@echo "make demo       export EleViT to every format, check it, time it here, print the table"
	@echo "make test       the tests (a few minutes); make test-slow for the rest"
	@echo "make check      lint, formatting, types, import contracts, generated files"
	@echo "make bench      side-by-side benchmarks (keep the machine quiet; hours, goes on where it was)"
	@echo "make index      write edgevit/zoo/index.json anew after a change to the zoo"
	@echo "make zoo        every model and block in every format (about two hours; goes on where it was)"
	@echo "make latency    time a small set and write its table in docs/latency.md (keep the machine quiet)"
	@echo "make docs       write docs/models.md anew"

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 10) <= v <= (3, 12) else f"edgevit is developed with Python 3.10 to 3.12, {sys.executable} is {v[0]}.{v[1]}; say make PYTHON=python3.12 ...")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	@touch $(READY)

latency: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/edgevit bench $(LATENCY) --output results/latency
	$(BIN)/edgevit ci tables docs/latency.md local=results/latency

latency-check: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/edgevit bench $(LATENCY) --output results/latency
	$(BIN)/edgevit ci tables docs/latency.md local=results/latency --check

demo: $(READY)
	$(BIN)/python -m benchmarks.photograph exports/photograph.png
	$(BIN)/edgevit export elevit --format onnx,coreml,tflite,torch --image exports/photograph.png -o exports
	$(BIN)/edgevit bench exports/elevit --device local --output results
	$(BIN)/edgevit table results --relative-to torch --include all

test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadfile

test-slow: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder \
	  -m slow --durations 12

check: $(READY)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m edgevit.zoo.index --check
	$(BIN)/python -m benchmarks.models_page --check
	$(BIN)/python -m benchmarks.performance_page --check

format: $(READY)
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

bench: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks startup repeatability parity boards
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.costs --publish && \
	  OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.peers --publish; \
	  status=$$?; $(BIN)/python -m benchmarks.performance_page; exit $$status

index: $(READY)
	$(BIN)/python -m edgevit.zoo.index

zoo: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.zoo_matrix $(ONLY) --format $(FORMATS) --jobs $(JOBS); \
	  status=$$?; $(BIN)/python -m benchmarks.models_page; exit $$status

docs: $(READY)
	$(BIN)/python -m benchmarks.models_page
	$(BIN)/python -m benchmarks.performance_page

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
