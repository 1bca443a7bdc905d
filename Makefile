# Every target sets up .venv itself; PYTHON picks the interpreter it is made from.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo serve test test-fast test-scale test-oldest lint bench eval lmms-eval clean

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --group dev --editable ".[accelerate,eval,plot,s3,schema,serve,smolvlm,subtitles]"
	touch $@

demo: $(READY)  ## render a video, ingest it, ask it questions
	$(BIN)/x2l demo

serve: $(READY)  ## the demo model with a rendered video, as an API and a page at http://127.0.0.1:8000
	$(BIN)/x2l serve --demo --library runs/serve

test: lint  ## lint, types and all tests
	$(BIN)/python -m pytest

test-fast: $(READY)  ## without the slow tests, on two processes
	$(BIN)/python -m pytest -q -n 2 -m "not slow"

# Ray is large (1 GB with what it needs), so that it is installed for its tests alone.
$(VENV)/.scale: $(READY)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[scale]"
	touch $@

test-scale: $(VENV)/.scale  ## many videos and questions on a Ray cluster of this machine, with all kinds of its processes killed: 3 minutes
	$(BIN)/python -m pytest tests/scale

# The oldest releases that pyproject.toml allows, in an environment of their own (a PyPI build of torch takes gigabytes).
# Their warnings of deprecation are not errors here.
test-oldest:  ## all tests on the oldest releases of what the package needs
	$(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/python -m pip install --quiet uv
	VIRTUAL_ENV=.venv-oldest .venv-oldest/bin/uv pip install --quiet --resolution lowest-direct --editable ".[accelerate,eval,plot,s3,schema,serve,smolvlm,subtitles]"
	VIRTUAL_ENV=.venv-oldest .venv-oldest/bin/uv pip install --quiet --group dev
	.venv-oldest/bin/python -m pytest -W default

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

bench: $(READY)  ## the tables of README and docs: about 20 minutes
	$(BIN)/python benchmarks/parity.py tests/golden/*/
	$(BIN)/python benchmarks/selection.py
	$(BIN)/python benchmarks/escalation.py
	$(BIN)/python benchmarks/abstain.py
	$(BIN)/python benchmarks/selection_cost.py
	$(BIN)/python benchmarks/settings.py
	$(BIN)/python benchmarks/memory_precision.py
	$(BIN)/python benchmarks/memory_disk.py
	$(BIN)/python benchmarks/demo_xl.py
	$(BIN)/python benchmarks/video_xl_flops.py
	$(BIN)/python benchmarks/video_xl_cpu.py
	$(BIN)/python benchmarks/video_sampling.py
	$(BIN)/python benchmarks/families.py

# Settings are chosen on the development split, the tables come from the held-out one. A run that was stopped goes on.
eval: $(READY)  ## all methods at equal bytes on the held-out haystack: docs/evaluation/, docs/demo-settings.md
	$(BIN)/python benchmarks/settings.py --density 0 4 --frames 64 --questions 100 --write docs/demo-settings.md
	$(BIN)/x2l eval haystack --split heldout --frames 64 --questions 600 --methods all --budget 1/4,1/8,1/16 --out runs/eval/64
	$(BIN)/x2l eval haystack --split heldout --frames 256 --questions 400 --methods all --budget 1/4,1/8,1/16 --out runs/eval/256
	$(BIN)/x2l eval haystack --split heldout --frames 1024 --questions 80 --methods all --budget 1/4,1/8,1/16 --out runs/eval/1024
	for d in 1 2 4 8; do $(BIN)/x2l eval haystack --split heldout --seed 21 --density $$d --frames 64 --questions 240 --tasks digit --methods full,x2l,x2l:oracle,x2l:random,x2l:none,retrieval,H,keydiff,infinipot,rekv --budget 1/8,1/16 --out runs/density/$$d || exit 1; done
	$(BIN)/x2l report runs/density/1 runs/density/2 runs/density/4 runs/density/8 --out runs/density/report && cp runs/density/report/density.png docs/evaluation/
	$(BIN)/x2l eval dense --split heldout --seed 5 --frames 64 --questions 600 --methods full,x2l,x2l:oracle,x2l:attention,x2l:none,retrieval,H,keydiff,infinipot,rekv --budget 1/8,1/16 --out runs/dense/64
	$(BIN)/x2l eval boards --split heldout --seed 7 --frames 32 --questions 304 --tasks digit,colour --methods full,x2l,x2l:oracle,retrieval,H,keydiff,infinipot,rekv --budget 1/4 --out runs/boards/32
	$(BIN)/python benchmarks/compressors.py
	$(BIN)/python benchmarks/following.py
	$(BIN)/x2l report runs/eval/64 runs/eval/256 runs/eval/1024 --out docs/evaluation

# lmms-eval pins an older PyAV than ours, so it has an environment of its own (2.4 GB). torch comes first, so that nothing
# fetches another one; PyAV is raised over lmms-eval's pin, which only its own models' decoders need; a torchvision that
# cannot be imported (a CUDA build beside a CPU build of torch) breaks transformers, so it is taken out again.
LMMS := .venv-lmms
$(LMMS)/.ready: pyproject.toml constraints-lmms.txt
	$(PYTHON) -m venv $(LMMS)
	$(LMMS)/bin/python -m pip install --quiet --upgrade "pip>=25.1"
	$(LMMS)/bin/python -m pip install --quiet --constraint constraints-lmms.txt torch
	$(LMMS)/bin/python -m pip install --quiet --constraint constraints-lmms.txt lmms-eval
	$(LMMS)/bin/python -m pip install --quiet --no-deps "av>=18,<19" --editable .
	$(LMMS)/bin/python -c "import torchvision" 2>/dev/null || $(LMMS)/bin/python -m pip uninstall --quiet --yes torchvision
	touch $@

lmms-eval: $(LMMS)/.ready  ## lmms-eval's own command line with our model, on synthetic videos
	HF_HUB_OFFLINE=1 $(LMMS)/bin/python benchmarks/lmms_eval/run.py

clean:
	rm -rf $(VENV) $(LMMS) .pytest_cache .mypy_cache .ruff_cache
