# Two commands do all the set-up from a fresh clone: `make study` and `make test`.
PYTHON ?= python3
EXTRAS ?= study,test,docs,cuda
SUITE ?= quick
RESULTS ?= runs/results
PAGE ?= report/index.html
BIN := .venv/bin
PARALLEL := --numprocesses logical --maxprocesses 4 --dist worksteal
QUICK := arguments cli compat data instructions intervals machine

.PHONY: study training test test-quick lint docs gpu clean

# Verifies, measures, trains and writes the page. Ctrl-C keeps what is done, and the same command goes on from there.
# PEERS=1 installs ONNX Runtime, OpenVINO and JAX into .venv, and measures them too.
study: .venv/study
ifdef PEERS
	@echo "installing the other engines into .venv: onnx, onnxruntime, openvino, jax"
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[study,peers]'
endif
	$(BIN)/python -m benchmarks.study --suite $(SUITE) --results $(RESULTS) --page $(PAGE) $(if $(PEERS),--peers)

# The whole of MNIST with five seeds, which takes an hour or more: DATA is a folder of its IDX files.
training: .venv/study
	$(BIN)/python -m benchmarks.training $(RESULTS) --data-dir $(DATA)
	$(BIN)/jitconv report $(RESULTS) -o $(PAGE)

test: .venv/ready
	$(BIN)/pytest $(PARALLEL)

# What compiles little: arguments, data, tables, files, statistics.
test-quick: .venv/ready
	$(BIN)/pytest $(PARALLEL) $(QUICK:%=tests/test_%.py)

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The site, from docs/ and the docstrings: needs no network once its packages are there.
docs: .venv/ready
	$(BIN)/python -m sphinx --fail-on-warning --keep-going -q docs runs/docs
	@echo runs/docs/index.html

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
	$(PYTHON) -m pytest -q benchmarks/test_gpu.py --suite $(SUITE) --threads all --benchmark-json $(GPU_RESULTS)/gpu.json \
	  || test -s $(GPU_RESULTS)/gpu.json
	$(PYTHON) -m benchmarks.train_on_gpu $(GPU_RESULTS)

# What the study needs takes half as long to install as what tests need, which they add.
.venv/study: EXTRAS = study
.venv/study .venv/ready: pyproject.toml constraints.txt
	@echo "installing into .venv, which takes some minutes the first time"
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[$(EXTRAS)]'
	touch .venv/study $@

clean:
	rm -rf .venv build *.egg-info runs
