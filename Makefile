# Each target sets up what it needs, in virtual environments of its own; nothing outside this folder is touched.
PYTHON ?= python3
# Torch comes first and at the version tested: where a CPU build of it is offered, nothing later replaces it by a
# larger one. Another build: make TORCH='torch --index-url ...' demo.
TORCH ?= torch==2.13.0
BIN := .venv/bin
PARITY := .venv-parity/bin

.PHONY: demo test check bench parity clean

demo: .venv/.run
	$(BIN)/m3 demo

test: .venv/.dev
	$(BIN)/python -m pytest -n 2 --dist loadfile

check: .venv/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# With DATA, a folder of BEIR folders, passages of scifact and jaquad_ja are encoded; without it those of the demo.
bench: .venv-parity/.bench
	$(PARITY)/python benchmarks/encoding.py $(if $(DATA),$(DATA)/scifact $(DATA)/jaquad_ja,examples/world --passages 200)
	$(PARITY)/python benchmarks/encoding_memory.py
	$(PARITY)/python benchmarks/modes.py examples/world
	$(PARITY)/python benchmarks/lexical.py $(if $(DATA),$(DATA)/scifact,examples/world)
	$(PARITY)/python benchmarks/local_index.py
	$(PARITY)/python benchmarks/hybrid_search.py
	$(PARITY)/python benchmarks/growth.py

parity: .venv-parity/.parity
	$(PARITY)/python -m pytest tests/parity -o addopts= -q -m parity

.venv/.run: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet $(TORCH)
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

.venv/.dev: .venv/.run
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

.venv-parity/.parity: pyproject.toml
	test -x $(PARITY)/python || $(PYTHON) -m venv .venv-parity
	$(PARITY)/python -m pip install --quiet $(TORCH)
	$(PARITY)/python -m pip install --quiet --editable '.[parity]'
	touch $@

.venv-parity/.bench: .venv-parity/.parity
	$(PARITY)/python -m pip install --quiet --editable '.[bench]'
	touch $@

clean:
	rm -rf .venv .venv-parity
