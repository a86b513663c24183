# make demo   installs into .venv and segments examples/parcel.tif into demo/
# make test   the checks and the tests: ruff, mypy, import contracts, pytest
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: demo test lint pytest clean

demo: $(VENV)/.installed
	@mkdir -p demo
	$(BIN)/uhrseg predict examples/parcel.tif --model swinv2-relay -o demo/mounds.gpkg -o demo/classes.tif --overwrite
	$(BIN)/uhrseg inspect examples/parcel.tif --labels demo/classes.tif --polygons demo/mounds.gpkg \
		--png demo/quicklook.png --overwrite
	@echo
	@echo "Made from examples/parcel.tif (real ground, artificial features: see NOTICE):"
	@echo "  demo/mounds.gpkg     polygons in the parcel's CRS; open it in QGIS"
	@echo "  demo/classes.tif     class map, a Cloud Optimized GeoTIFF with colours and names"
	@echo "  demo/quicklook.png   classes and outlines over the relief"

test: lint pytest

lint: $(VENV)/.test-installed
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/lint-imports

# One thread a process: that is what promises of identical results are made for, and two processes fill two cores.
pytest: $(VENV)/.test-installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml | $(BIN)/python
	@echo "Installing uhrseg and its dependencies into $(VENV) (some minutes, 6 GB with CUDA) ..."
	$(PIP) --editable .
	@touch $@

$(VENV)/.test-installed: pyproject.toml | $(BIN)/python
	@echo "Installing uhrseg with its test tools into $(VENV) (some minutes, 6 GB with CUDA) ..."
	$(PIP) --editable ".[test]"
	@touch $@ $(VENV)/.installed

clean:
	rm -rf demo build *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
