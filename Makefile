# Each target sets up what it needs, in virtual environments of its own; nothing outside this folder is touched.
PYTHON ?= python3
# Torch comes first and at the version tested: where a CPU build of it is offered, nothing later replaces it by a
# larger one. Another build: make TORCH='torch --index-url ...' demo.
TORCH ?= torch==2.13.0
# The build of torch for `make lowest`, at the version that pyproject.toml states as the lowest.
LOWEST_TORCH ?= torch
BIN := .venv/bin
PARITY := .venv-parity/bin
PYLATE := .venv-pylate/bin
LOWEST := .venv-lowest/bin
WHEEL := .venv-wheel/bin
WHEELS := .venv-wheels/bin

.PHONY: demo test check browser screenshots faults soak bench parity pylate docs dist wheels lowest clean

demo: .venv/.run
	$(BIN)/m3 demo

test: .venv/.dev
	$(BIN)/python -m pytest -n 2 --dist loadfile

check: .venv/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# The documentation, in site/, which works from a folder without a server; open site/index.html. Warnings are errors,
# and its code blocks are run.
docs: .venv/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet
	$(BIN)/python -m pytest tests/docs -n 2 --dist loadfile

# The pages of the demo and the documentation in Chromium or Chrome, which the system provides (on Debian: apt-get install chromium).
browser: .venv/.browser site/index.html
	$(BIN)/python -m pytest tests/browser

# The pictures of docs/serving.md, taken by the tests of the served page.
screenshots: .venv/.browser
	M3_SCREENSHOTS=docs/images $(BIN)/python -m pytest tests/browser/test_serve_page.py

# Power cuts and failing disks: file calls are recorded, and made to fail, by a library that cc compiles (on Debian:
# apt-get install gcc libc6-dev).
faults: .venv/.dev
	$(BIN)/python -m pytest tests/faults

# The same without sampling, a million damaged files, 50,000 operations, and eight processes for five minutes: hours.
soak: .venv/.dev
	$(BIN)/python -m tests.faults.power_loss
	$(BIN)/python -m tests.faults.io_errors
	$(BIN)/python -m tests.fuzz --cases 1000000
	$(BIN)/python -m tests.soak.mixed --operations 50000
	$(BIN)/python -m tests.soak.processes --seconds 300

# With DATA, a folder of BEIR folders, passages of scifact and jaquad_ja are encoded; without it those of the demo.
bench: .venv-parity/.bench
	$(PARITY)/python benchmarks/encoding.py $(if $(DATA),$(DATA)/scifact $(DATA)/jaquad_ja,examples/world --passages 200)
	$(PARITY)/python benchmarks/encoding_memory.py
	$(PARITY)/python benchmarks/modes.py examples/world
	$(PARITY)/python benchmarks/lexical.py $(if $(DATA),$(DATA)/scifact,examples/world)
	$(PARITY)/python benchmarks/local_index.py
	$(PARITY)/python benchmarks/hybrid_search.py
	$(PARITY)/python benchmarks/growth.py

# Fails if fewer tests than this pass: one that is skipped or lost compares nothing.
COMPARISONS := 150

parity: .venv-parity/.parity
	$(PARITY)/python -m pytest tests/parity --min-comparisons $(COMPARISONS)

# PyLate pins sentence-transformers 5.3, and its index an older torch, so that it has an environment of its own.
pylate: .venv-pylate/.pylate
	$(PYLATE)/python -m pytest tests/pylate

# The wheel is built from the sdist, so that both are complete, and installed into an empty environment.
dist: .venv/.dev
	rm -rf dist .venv-wheel
	$(BIN)/python -m build
	$(BIN)/twine check --strict dist/*
	$(PYTHON) -m venv .venv-wheel
	$(WHEEL)/python -m pip install --quiet $(TORCH)
	$(WHEEL)/python -m pip install --quiet dist/*.whl
	cd .venv-wheel && bin/m3 demo

# Wheels of every run-time extra for each Python and platform, without installing them.
wheels:
	test -x $(WHEELS)/uv || $(PYTHON) -m venv .venv-wheels
	$(WHEELS)/python -m pip install --quiet uv
	.ci/wheels $(WHEELS)/uv

lowest: .venv-lowest/.lowest
	$(LOWEST)/python -m pytest -n 2 --dist loadfile

site/index.html: .venv/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

.venv/.run: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet $(TORCH)
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

.venv/.dev: .venv/.run
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

.venv/.docs: .venv/.dev
	$(BIN)/python -m pip install --quiet --editable '.[docs]'
	touch $@

.venv/.browser: .venv/.dev
	$(BIN)/python -m pip install --quiet --editable '.[browser]'
	touch $@

.venv-parity/.parity: pyproject.toml
	test -x $(PARITY)/python || $(PYTHON) -m venv .venv-parity
	$(PARITY)/python -m pip install --quiet $(TORCH)
	$(PARITY)/python -m pip install --quiet --editable '.[parity]'
	touch $@

# Without their dependencies: fast-plaid 1.4.6 requires torch 2.11 at most, and ColBERT models do without it.
.venv-pylate/.pylate: pyproject.toml
	test -x $(PYLATE)/python || $(PYTHON) -m venv .venv-pylate
	$(PYLATE)/python -m pip install --quiet $(TORCH)
	$(PYLATE)/python -m pip install --quiet --editable . 'transformers<5.4' datasets pandas scikit-learn ujson pytest hypothesis
	$(PYLATE)/python -m pip install --quiet --no-deps pylate==1.6.0 sentence-transformers==5.3.0 fastkmeans==0.5.0
	touch $@

.venv-parity/.bench: .venv-parity/.parity
	$(PARITY)/python -m pip install --quiet --editable '.[bench]'
	touch $@

.venv-lowest/.lowest: pyproject.toml .ci/lowest.py
	test -x $(LOWEST)/python || $(PYTHON) -m venv .venv-lowest
	$(LOWEST)/python .ci/lowest.py > .venv-lowest/constraints.txt
	$(LOWEST)/python -m pip install --quiet --constraint .venv-lowest/constraints.txt $(LOWEST_TORCH)
	$(LOWEST)/python -m pip install --quiet --constraint .venv-lowest/constraints.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf .venv .venv-parity .venv-pylate .venv-lowest .venv-wheel .venv-wheels dist site
