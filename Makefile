# make demo: the whole road on real text. make test: all tests. Both set up .venv first; only a package index is needed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test test-vllm venv lint clean

demo: venv
	$(BIN)/corpusmill sample-corpus --out corpus --target-mb 60
	$(BIN)/corpusmill run quickstart --workers $$(getconf _NPROCESSORS_ONLN)

test: venv
	$(BIN)/ruff check .
	$(BIN)/mypy
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile

# vLLM wants other versions than the rest: an environment of its own, 4 GB and 6 minutes to install.
test-vllm:
	tests/vllm_environment.sh

venv: $(VENV)/ready

$(VENV)/ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' || { echo "corpusmill needs Python 3.11 or 3.12, found $$($(PYTHON) --version); set PYTHON=python3.11"; exit 1; }
	@command -v c++ >/dev/null || { echo "fasttext is published as source only and needs a C++ compiler: install g++ (Debian: apt-get install g++)"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt torch==2.13.0
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

lint: venv
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) corpus runs
