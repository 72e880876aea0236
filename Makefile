# make demo   set everything up, train the quickstart, judge its features
# make test   set everything up, run every check and test
# Both install what is missing and reuse what is there. PYTHON=python3.12 picks another Python.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
SUDO := $(shell [ "$$(id -u)" = 0 ] || echo sudo)

# FFCV compiles against OpenCV and libjpeg-turbo when pip installs it.
PACKAGES := g++ pkg-config libopencv-dev libturbojpeg0-dev

.PHONY: setup system demo test clean

setup: $(READY)

# The sentinel is written last, so an interrupted set-up starts again.
$(READY): pyproject.toml | system
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
	  || { echo "error: fastcl needs Python 3.10 or newer; $(PYTHON) is older"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) \
	  || { echo "error: cannot make $(VENV); install venv: $(SUDO) apt-get install python3-venv"; exit 1; }
	@echo "installing torch, timm, ffcv and what they need (some minutes, some GB)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@$(BIN)/python -c 'import ffcv, torch, timm' \
	  || { echo "error: the packages above do not import; install: $(SUDO) apt-get install $(PACKAGES)"; exit 1; }
	@touch $@

system:
	@have() { command -v g++ >/dev/null && command -v pkg-config >/dev/null \
	    && pkg-config --exists opencv4 libturbojpeg \
	    && $(PYTHON) -c 'import pathlib, sys, sysconfig; sys.exit(not (pathlib.Path(sysconfig.get_path("include")) / "Python.h").exists())'; }; \
	have || { \
	    echo "installing $(PACKAGES) and Python's headers"; \
	    headers=$$($(PYTHON) -c 'import sys; print("" if sys.base_prefix not in ("/usr", "/usr/local") else "python%d.%d-dev" % sys.version_info[:2])'); \
	    $(SUDO) apt-get update -qq \
	    && DEBIAN_FRONTEND=noninteractive $(SUDO) apt-get install -y -qq --no-install-recommends $(PACKAGES) $$headers >/dev/null; \
	    have || { echo "error: libraries are missing; install: $(SUDO) apt-get install $(PACKAGES) $$headers"; exit 1; }; }

demo: setup
	$(BIN)/fastcl run schedules/quickstart.fcs --out runs/quickstart --overwrite
	$(BIN)/fastcl probe runs/quickstart/backbone.safetensors --data digits --untrained

test: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest

clean:
	rm -rf $(VENV) runs build dist
