# Uses whichever python is active. `pip install -e ".[dev]"` first.
PYTHON ?= python
CODE := $(wildcard salmacli tests benchmarks examples)

.PHONY: check lint types imports test format bench

check: lint types imports test  ## what CI runs

lint:
	$(PYTHON) -m ruff format --check $(CODE)
	$(PYTHON) -m ruff check $(CODE)

types:
	$(PYTHON) -m mypy

imports:
	$(PYTHON) -c "import sys; from importlinter.cli import lint_imports_command; sys.exit(lint_imports_command())"

test:
	OMP_NUM_THREADS=1 $(PYTHON) -m pytest -n logical --dist loadfile

format:  ## write what `lint` checks
	$(PYTHON) -m ruff format $(CODE)
	$(PYTHON) -m ruff check --fix $(CODE)

bench:  ## every benchmark, one after the other; results as JSON in benchmarks/results
	@ls benchmarks/*.py >/dev/null 2>&1 || { echo "no benchmarks yet"; exit 0; }; \
	for file in benchmarks/[!_]*.py; do echo "== $$file"; $(PYTHON) $$file || exit 1; done
