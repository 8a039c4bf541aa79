# make demo: both stages and evaluate on the embedded digits, then every method on the released features
# make test: lint and tests. make test-long, or make torture: the tests in their long form. All set up their own virtual
# environment first; VENV=path takes another one.
VENV ?= .venv
PYTHON ?= python3
RUN := $(VENV)/bin/python
PACK := checkpoints/released/cifar100_lt/IR=100/resnet32_features.safetensors
DEMO := --dataset digits_lt --seed 0 --out output/demo --ckpt_dir output/demo/checkpoints

.PHONY: setup setup-dev demo test test-long torture lint format bench reproduce clean

setup: $(VENV)/.ready
$(VENV)/.ready: requirements.txt
	test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

setup-dev: $(VENV)/.ready-dev
$(VENV)/.ready-dev: requirements.txt requirements-dev.txt
	test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $@

demo: setup
	$(RUN) main_stage1.py --cur_stage stage1 $(DEMO)
	$(RUN) main_stage2.py --cur_stage stage2 $(DEMO)
	$(RUN) evaluate.py --cur_stage stage1 --quiet --dataset digits_lt --out output/demo --ckpt_dir output/demo/checkpoints
	$(RUN) evaluate.py --cur_stage stage2 --quiet --dataset digits_lt --out output/demo --ckpt_dir output/demo/checkpoints
	$(RUN) main_stage2.py --features $(PACK) --method all --seed 0 --out output/demo --ckpt_dir output/demo/checkpoints

lint: setup-dev
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .

test: lint
	OMP_NUM_THREADS=1 $(RUN) -m pytest -n auto --maxprocesses 8 --dist loadfile

test-long torture: setup-dev
	$(RUN) -m pytest -m long --durations=0 --durations-min=10

format: setup-dev
	$(RUN) -m ruff format .
	$(RUN) -m ruff check --fix .

GRID ?= thin
reproduce: setup
	$(RUN) -m utils.reproduce --grid $(GRID) --jobs $(or $(JOBS),1)

bench: setup
	$(RUN) -m benchmarks

clean:
	rm -rf output/demo .pytest_cache .ruff_cache
