# Everything runs in .venv, with the versions of constraints.txt. PYTHON chooses the interpreter.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
OUT ?= out
LOWEST := 0.36.0
# pip compiles nothing below: the first process that imports a module leaves its bytecode to others.
export PYTHONDONTWRITEBYTECODE :=

.DEFAULT_GOAL := help
.PHONY: help demo bench test test-lowest lint format train train-judge samples figures models wheel wheel-test clean evaluate-smoke embedded-tables embedded-times multirate-tables multirate-times test-fidelity

help:  ## show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 14

# The stamps are newer than the files that decide what is installed, so nothing is built twice.
$(VENV)/created:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "ras-dit needs Python 3.11 or newer; try make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	touch $@

$(VENV)/installed: pyproject.toml constraints.txt | $(VENV)/created
	$(PIP) install --quiet --no-compile -c constraints.txt -e .
	touch $@

$(VENV)/installed-dev: pyproject.toml constraints.txt | $(VENV)/created
	$(PIP) install --quiet --no-compile -c constraints.txt -e '.[dev]'
	$(PIP) install --quiet --no-compile --upgrade --no-deps --target $(VENV)/torchao -c constraints.txt torchao
	touch $@ $(VENV)/installed

$(VENV)/installed-train: pyproject.toml constraints.txt | $(VENV)/created
	$(PIP) install --quiet --no-compile -c constraints.txt -e '.[train]'
	touch $@ $(VENV)/installed

demo: $(VENV)/installed  ## make a picture with the embedded model, dense and by regions, into out/
	$(BIN)/ras-dit generate "an apple on a blue background" --sample-ratio 0.25 --steps 28 \
	  --size 256x256 --seed 0 --compare --out $(OUT)

test: lint  ## lint, then all tests
	$(BIN)/python -m pytest -n 2 --dist loadfile

# The engine's tests on the lowest diffusers that works; its own warnings are not ours.
test-lowest:  ## the engine's tests on the lowest supported diffusers, in an environment of its own
	$(PYTHON) -m venv $(VENV)-lowest
	sed 's/^diffusers==.*/diffusers==$(LOWEST)/' constraints.txt > $(VENV)-lowest/constraints.txt
	$(VENV)-lowest/bin/python -m pip --disable-pip-version-check install --quiet \
	  -c $(VENV)-lowest/constraints.txt -e '.[dev]' httpx
	$(VENV)-lowest/bin/python -m pytest -W ignore $(addprefix tests/test_,laws.py engine.py \
	  lifecycle.py lumina.py sd3_family.py public_code.py generate.py cli.py)

lint: $(VENV)/installed-dev  ## ruff, formatting, mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/installed-dev  ## let ruff mend what it can
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

train: $(VENV)/installed-train  ## train the embedded model (many hours)
	$(BIN)/python -m training

train-judge: $(VENV)/installed-train  ## train the judge of the emoji world, measure it (about an hour)
	$(BIN)/python -m training.judge --work work-judge
	$(BIN)/python -m training.judge_measure --work work-judge

evaluate-smoke: $(VENV)/installed-dev  ## pictures, scores, times and report of the embedded model, in short, into out/evaluation/
	$(BIN)/ras-dit evaluate run benchmarks/smoke.yaml --out $(OUT)/evaluation

embedded-tables: $(VENV)/installed-dev  ## pictures and scores of the embedded tables for BUDGET minutes, then docs/embedded-tables.md
	$(BIN)/python -m benchmarks.embedded --out $(OUT)/embedded $(if $(BUDGET),--budget $(BUDGET))

embedded-times: $(VENV)/installed-dev  ## seconds of the rows of the embedded tables, on an idle machine
	$(BIN)/python -m benchmarks.embedded --out $(OUT)/embedded --times

multirate-tables: $(VENV)/installed-dev  ## pictures and scores of multirate sampling for BUDGET minutes, then docs/multirate-tables.md
	$(BIN)/python -m benchmarks.multirate --out $(OUT)/multirate $(if $(BUDGET),--budget $(BUDGET))

multirate-times: $(VENV)/installed-dev  ## seconds of the rows of the multirate tables, on an idle machine
	$(BIN)/python -m benchmarks.multirate --out $(OUT)/multirate --times

# torch-fidelity needs torchvision, whose CPU builds do not fit every torch: an environment of its own.
test-fidelity:  ## FID, sFID and LPIPS against torch-fidelity and torchmetrics (several gigabytes)
	$(PYTHON) -m venv $(VENV)-fidelity
	$(VENV)-fidelity/bin/python -m pip --disable-pip-version-check install --quiet \
	  torch==2.14.1 torchvision==0.29.1 pytest -e '.[fidelity]'
	PYTHONPATH=tests $(VENV)-fidelity/bin/python -m pytest --noconftest -W ignore tests/fidelity_inception.py

bench: $(VENV)/installed-dev  ## measure speed and memory (about an hour), into docs/benchmarks.md
	$(BIN)/python -m benchmarks

samples: $(VENV)/installed-train  ## draw the contact sheet of the embedded model
	$(BIN)/python -m training.samples

figures: $(VENV)/installed  ## draw the figures of docs/figures.md
	$(BIN)/python docs/draw.py

models: $(VENV)/installed-dev  ## draw the table of supported pipelines from the tests
	PYTHONPATH=tests:. $(BIN)/python -W ignore tests/support_table.py

wheel: $(VENV)/installed-dev  ## build the wheel into dist/
	rm -rf dist
	$(BIN)/python -m build --wheel --outdir dist .

wheel-test: wheel  ## install the wheel into an empty environment, make a picture from another folder
	rm -rf $(VENV)-wheel
	$(PYTHON) -m venv $(VENV)-wheel
	$(VENV)-wheel/bin/python -m pip --disable-pip-version-check install --quiet -c constraints.txt dist/*.whl
	root="$$PWD" && folder=$$(mktemp -d) && cd "$$folder" && \
	  "$$root/$(VENV)-wheel/bin/ras-dit" generate "an apple" --steps 8 --size 128x128 --out pictures && \
	  test "$$(ls pictures/*.png | wc -l)" -ge 2 && rm -rf "$$folder"

clean:  ## remove everything that make made
	rm -rf $(VENV) $(VENV)-wheel $(VENV)-lowest $(VENV)-fidelity dist build .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
