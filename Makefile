# Needs only Python 3.11 or later, pip and make. The two main commands are `make test` and `make demo`.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin

.PHONY: setup links demo real paper-world long-clips docs test check test-compat test-latest test-serving clean

setup: .venv/ready links

# torch first, so that nothing else pulls another build of it.
.venv/ready: setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

# The folders under their import names, for mypy and editors: falcon3_audio.training is training/ and so on.
LINKS := .cache/typed
links:
	rm -rf $(LINKS) && mkdir -p $(LINKS)/falcon3_audio
	ln -s $(CURDIR)/modeling_falcon3_audio/*.py $(CURDIR)/modeling_falcon3_audio/py.typed $(LINKS)/falcon3_audio
	ln -s $(CURDIR)/processing $(CURDIR)/training $(CURDIR)/evaluation $(CURDIR)/model_cards $(CURDIR)/demo $(CURDIR)/serving \
		$(LINKS)/falcon3_audio
	ln -s $(CURDIR)/benchmarks $(CURDIR)/falcon3_audio_cli.py $(LINKS)

# Generates clips, trains a tiny model on them, and evaluates it on held-out clips.
demo: setup
	$(BIN)/python -m falcon3_audio.training.world.demo runs/demo

# Downloads falcon3-audio-nano's backbones and the recordings (2.1 GB, needs apt-get), and evaluates it.
real: setup
	$(BIN)/pip install --quiet --no-deps --constraint constraints.txt tinysoundfont
	$(BIN)/python -m falcon3_audio.training.real runs/real

# The paper's questions on the audio world (training/studies/README.md): 15 arms, three seeds, two hours on two cores.
# Run it again to resume.
WORLD := runs/paper_world
paper-world: setup
	$(BIN)/python -m falcon3_audio.training.world.audio_world $(WORLD)/world --train-clips 900 --test-clips 600 --seed 0 --workers 2
	$(BIN)/falcon3-audio open-asqa prepare $(WORLD)/world/train.json $(WORLD)/data
	test -e $(WORLD)/llm/tokenizer.json || $(BIN)/python -m falcon3_audio.training.tiny_backbones.make_llm $(WORLD)/llm \
		--clips 10240 --seed 0 --without spoken_animal speaker_style word_count last_word sound_count last_sound sound_shape \
		movement note_count
	$(BIN)/falcon3-audio study training/studies/paper_world.yaml $(WORLD)/study --jobs 2

# Hearing in long clips, of up to five minutes.
LONG := runs/long_clips
long-clips: setup
	$(BIN)/python -m falcon3_audio.training.world.audio_world $(LONG)/world --train-clips 900 --test-clips 12 --seed 0 --workers 2
	$(BIN)/python -m falcon3_audio.training.world.long_clips $(LONG)/clips --train-clips 300 --test-clips 60 --seed 0
	$(BIN)/falcon3-audio open-asqa prepare $(LONG)/world/train.json $(LONG)/short
	$(BIN)/falcon3-audio open-asqa prepare $(LONG)/clips/train-10.json $(LONG)/to-10
	$(BIN)/falcon3-audio open-asqa prepare $(LONG)/clips/train-30.json $(LONG)/to-30
	$(BIN)/falcon3-audio study training/studies/long_clips.yaml $(LONG)/study --jobs 2

# Builds the documentation in site/; `.venv/bin/mkdocs serve` shows it while you edit.
docs: setup
	$(BIN)/python docs/make_figures.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

# Two test files at a time; `.venv/bin/pytest tests/training/test_collator.py` runs one.
test: check
	$(BIN)/pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder --durations 20

# Lint, format and types.
check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Tests the code saved with a checkpoint, and the package, on the oldest transformers each supports; `make test` uses
# the newest.
test-compat: setup
	$(BIN)/python tests/compat.py 5.16.0 5.23.0

# All tests against the newest releases that setup.cfg allows, in a fresh environment; differences from constraints.txt
# are listed first. torch stays pinned as in constraints.txt.
test-latest:
	$(PYTHON) -m venv --clear .cache/latest
	grep '^torch==' constraints.txt > .cache/latest/torch.txt
	.cache/latest/bin/pip install --quiet --constraint .cache/latest/torch.txt --editable ".[dev]"
	.cache/latest/bin/pip freeze --exclude-editable | sed 's/+cpu$$//' | grep --invert-match --line-regexp --fixed-strings --file constraints.txt || echo "nothing differs from constraints.txt"
	.cache/latest/bin/pytest

# The serving tests: vLLM in its own environment (4 GB in .cache/vllm), and quantised models with torchao.
test-serving: setup
	$(BIN)/pip install --quiet --no-deps --constraint constraints.txt --target .cache/torchao --upgrade torchao
	PYTHONPATH=.cache/torchao TEST_SERVING=1 $(BIN)/pytest tests/serving/test_vllm.py tests/serving/test_quantised.py

clean:
	rm -rf .venv .cache build dist *.egg-info
