# Every target sets up .venv itself; PYTHON picks the interpreter it is made from.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test lint bench clean

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --group dev --editable ".[accelerate,s3,subtitles]"
	touch $@

demo: $(READY)  ## render a video, ingest it, ask it questions
	$(BIN)/x2l demo

test: lint  ## lint, types and all tests
	$(BIN)/python -m pytest

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(READY)  ## the tables of README and docs: about 20 minutes
	$(BIN)/python benchmarks/parity.py tests/golden/*/
	$(BIN)/python benchmarks/demo_accuracy.py
	$(BIN)/python benchmarks/selection.py
	$(BIN)/python benchmarks/settings.py
	$(BIN)/python benchmarks/memory_precision.py
	$(BIN)/python benchmarks/memory_disk.py
	$(BIN)/python benchmarks/demo_xl.py
	$(BIN)/python benchmarks/video_xl_flops.py
	$(BIN)/python benchmarks/video_xl_cpu.py
	$(BIN)/python benchmarks/video_sampling.py

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache
