# Every target sets itself up; only make and Python 3.10 or newer are required.
PYTHON ?= python3
DATASET ?= digits
FLAGS ?=
# From the command line only: the environment may contain variables of these names.
DATA :=
WEIGHTS :=
CLUSTERS :=
CREDIT :=
NAME := $(filter-out digits,$(DATASET))

VENV := .venv
PY := $(VENV)/bin/python
TORCH := $(shell sed -n 's/^torch==//p' requirements.txt)
TORCHVISION := $(shell sed -n 's/^torchvision==//p' requirements.txt)

quote = '$(subst ','\'',$(1))'
ifneq ($(DATA),)
DATASET := folder
# Absolute. Some shells do not expand the ~ of DATA=~/pictures.
FOLDER := $(shell printf '%s\n' $(call quote,$(DATA)) | sed "s|^~|$$HOME|" | { IFS= read -r d; CDPATH= cd "$$d" && pwd; })
$(if $(FOLDER),,$(error DATA=$(DATA) is not a folder))
# The name of the folder, reduced to letters, digits, - _ and .
NAME := $(shell basename $(call quote,$(FOLDER)) | tr -cs 'A-Za-z0-9_.\n' - | sed 's/^[-.]*//; s/-$$//; s/^$$/pictures/')
endif
# digits uses the default folders of the scripts; anything else gets its own.
NAMED := $(if $(NAME),--name $(call quote,$(NAME)))

.DEFAULT_GOAL := help
.PHONY: help run test faults lint format bench pictures sync clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## /{printf "make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo "make run DATA=~/pictures        the same stages on your own pictures (NAME=... names the results)"
	@echo "make run DATA=... WEIGHTS=dino  start from weights learned without labels (or none, imagenet)"
	@echo "make run DATA=... CLUSTERS=20   20 clusters instead of 10"
	@echo "make run DATASET=stl10          the same stages on STL-10 (downloads 2.6 GB)"
	@echo "make pictures DATA=FOLDER       the same on 600 photographs of FOLDER/CLASS/ (CREDIT='whose they are')"
	@echo "make run FLAGS='--epochs 4'     more flags for src/train.py"

run: $(VENV)/installed  ## train, extract, cluster, predict, draw (handwritten digits, minutes)
	@$(PY) src/train.py --dataset $(DATASET) $(if $(DATA),--data-dir $(call quote,$(FOLDER))) $(NAMED) $(if $(WEIGHTS),--weights $(call quote,$(WEIGHTS))) $(FLAGS)
	@$(PY) src/feature_extraction.py --untrained $(NAMED)
	@$(PY) src/clustering.py --baselines $(NAMED) $(if $(CLUSTERS),--clusters $(call quote,$(CLUSTERS)))
	@$(PY) src/inference.py $(NAMED)
	@$(PY) visualize_features.py $(NAMED)
	@echo "1. Open features$(if $(NAME),/$(NAME))/report.html in a browser."
	@echo "2. Name the groups there and download names.json into features$(if $(NAME),/$(NAME)), then: $(strip $(PY) src/clustering.py --names $(if $(NAME),--name $(NAME)))"
	@echo "3. Predict a new picture: $(strip $(PY) src/inference.py $(if $(NAME),--name $(NAME)) photo.jpg)"

test: $(VENV)/installed-dev  ## the tests (CPU, no network, a few minutes)
	OMP_NUM_THREADS=1 $(PY) -m pytest --numprocesses 2

faults: $(VENV)/installed-dev  ## the long tests: kill training repeatedly, damage every file, compile large networks, measure
	OMP_NUM_THREADS=1 $(PY) -m pytest tests/test_faults.py tests/test_fuzz.py tests/test_compilation.py tests/test_distributed.py \
		tests/test_benchmarks.py -m "faults or not faults"

lint: $(VENV)/installed-dev  ## ruff, format check, type check
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m pyright

format: $(VENV)/installed-dev  ## fix what ruff can fix
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

bench: $(VENV)/installed-dev  ## side-by-side speed measurements
	$(PY) -m pip install --quiet -r benchmarks/requirements.txt
	$(PY) benchmarks/train_throughput.py
	$(PY) benchmarks/extract_throughput.py
	$(PY) benchmarks/clustering_scale.py

pictures: $(VENV)/installed-dev  ## the pictures in docs/, from photographs in DATA=FOLDER/CLASS/ (needs Chromium)
	$(PY) docs/make_pictures.py $(if $(DATA),--data-dir $(call quote,$(FOLDER)),--feature-dir features$(if $(NAME),/$(NAME))) $(if $(CREDIT),--credit $(call quote,$(CREDIT)))

sync: $(VENV)/installed  ## upload offline Weights & Biases runs
	$(PY) src/sync_wandb.py

clean:  ## remove the virtual environment
	rm -rf $(VENV)

$(VENV)/installed: requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or newer is required: make PYTHON=python3.12 ...")'
	@test -x $(PY) || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV) (once, takes a few minutes)"
	@$(PY) -m pip install --quiet --upgrade pip
	@if ! nvidia-smi >/dev/null 2>&1 && $(PY) -m pip install --quiet torch==$(TORCH)+cpu torchvision==$(TORCHVISION)+cpu 2>/dev/null; \
	then echo "no NVIDIA GPU found: installed the CPU build of PyTorch, 2 GB in total"; \
	else echo "PyTorch includes CUDA libraries: 5 GB in total (for a smaller build, see README)"; fi
	@$(PY) -m pip install --quiet -r requirements.txt
	@touch $@

$(VENV)/installed-dev: $(VENV)/installed requirements-dev.txt
	@$(PY) -m pip install --quiet -r requirements-dev.txt
	@touch $@
