# Two commands do all the set-up from a fresh clone: `make study` and `make test`.
PYTHON ?= python3
EXTRAS ?= study,test,cuda
SUITE ?= quick
RESULTS ?= runs/results
PAGE ?= report/index.html
BIN := .venv/bin

.PHONY: study test lint gpu clean

study: .venv/ready
	rm -rf $(RESULTS) runs/train && mkdir -p $(RESULTS)
	$(BIN)/jitconv verify --json $(RESULTS)/verify.json > $(RESULTS)/verify.txt
	$(BIN)/pytest benchmarks -q --suite $(SUITE) --benchmark-json $(RESULTS)/benchmarks.json > $(RESULTS)/benchmarks.txt \
	  || test -s $(RESULTS)/benchmarks.json
	for run in "torch" "jit-tiled" "vector --epochs 1" "jit-parallel --epochs 1" "jit --epochs 1" \
	           "interpreted --epochs 1 --limit 1"; do \
	  set -- $$run; $(BIN)/jitconv train --variant $$run --out runs/train/$$1 > /dev/null || exit; \
	  cp runs/train/$$1/result.json $(RESULTS)/train-$$1.json; \
	done
	$(BIN)/jitconv report $(RESULTS) -o $(PAGE)

test: .venv/ready
	$(BIN)/pytest

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# On a machine with a CUDA GPU, whose Python has torch, numba-cuda, pytest and pytest-benchmark; needs no network.
# The simulator is in a process of its own, and compute-sanitizer, where there is one, watches a part of the tests.
gpu: MACHINE = $(shell $(PYTHON) -c "import torch; print(torch.cuda.get_device_name().lower().replace(' ', '-'))")
gpu: GPU_RESULTS = report/results/$(MACHINE)
gpu: export PYTHONPATH := $(CURDIR)
gpu:
	test -n "$(MACHINE)"
	$(PYTHON) -m pytest -q tests/cuda
	if command -v compute-sanitizer; then \
	  compute-sanitizer --error-exitcode 1 --report-api-errors no $(PYTHON) -m pytest -q tests/cuda/test_device.py -k "torch and float32"; fi
	mkdir -p $(GPU_RESULTS)
	$(PYTHON) -m pytest -q benchmarks/test_gpu.py --suite $(SUITE) --benchmark-json $(GPU_RESULTS)/gpu.json \
	  || test -s $(GPU_RESULTS)/gpu.json
	$(PYTHON) -m benchmarks.train_on_gpu $(GPU_RESULTS)

.venv/ready: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[$(EXTRAS)]'
	touch $@

clean:
	rm -rf .venv build *.egg-info runs
