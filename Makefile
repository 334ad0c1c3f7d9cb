# make demo | make test: create .venv, install into it, run. Nothing but Linux and Python >= 3.10 is needed;
# choose another interpreter with `make PYTHON=/path/to/python3.11 demo`.
PYTHON ?= $(firstword $(foreach name,python3 python3.13 python3.12 python3.11 python3.10,\
	$(shell $(name) -c 'import sys; print("$(name)" if sys.version_info >= (3, 10) else "")' 2>/dev/null)))
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# whole files at a time, because the tests of a file share what they train; in order, or the longest files would come last
IN_PARALLEL := -n 2 --dist loadfile --no-loadscope-reorder
# the oldest nnU-Net that setup.cfg allows; it lies beside the environment's own, which is the newest, and hides it
OLDEST := $(shell sed -n 's/^ *nnunetv2>=\([0-9.]*\).*/\1/p' setup.cfg)
OLDEST_FOLDER := $(VENV)/nnunet-oldest
OLDEST_STAMP := $(OLDEST_FOLDER)/.installed
# MONAI Label and MONAI Deploy lie in an environment over the own one, which they would change
APPS := $(VENV)/apps
APPS_STAMP := $(APPS)/.installed
APPS_LISTS := tests/bundle/apps.txt tests/bundle/apps_with_dependencies.txt
DOCS_STAMP := $(VENV)/.installed-docs
SITE_PACKAGES = import sysconfig; print(sysconfig.get_path("purelib"))
WITH_OLDEST := PYTHONPATH="$(CURDIR)/$(OLDEST_FOLDER)"

export PYTHONNOUSERSITE := 1
# ITK, once imported, leaves Python with the C locale
export PYTHONUTF8 := 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# MkDocs Material's notice of its successor is no warning of ours
export NO_MKDOCS_2_WARNING := 1
unexport PYTHONPATH PYTHONHOME

.DELETE_ON_ERROR:
.PHONY: demo test test-oldest test-apps bench docs lint format install clean distclean

demo: $(STAMP)
	$(BIN)/alhvr demo

test: $(STAMP)
	$(BIN)/python -m pytest $(IN_PARALLEL) $(PYTEST_ARGS)

# the unit tests to which the release matters; the slow ones repeat through nnU-Net's commands what these call directly
test-oldest: $(OLDEST_STAMP)
	$(WITH_OLDEST) ALHVR_TEST_NNUNET=$(OLDEST) $(BIN)/python -m pytest $(IN_PARALLEL) -m 'not slow and not any_nnunet' $(PYTEST_ARGS)

# an exported bundle in MONAI Label and in MONAI Deploy; 1 GB the first time
test-apps: $(APPS_STAMP)
	$(APPS)/bin/python -m pytest -m apps $(PYTEST_ARGS)

# the benchmarks that two CPU cores repeat in 20 minutes, one after the other; one alone: make BENCH=scale bench
BENCH := loader memory scale step_cost
BENCH_loader := --rounds 3
BENCH_memory := measure --cases "2d;2d, ResEnc M;3d"
BENCH_scale := --sizes 10,100,1000
BENCH_step_cost := --cases 2d_small,3d_small --seconds 20
BENCH_OUTPUT := bench_output

bench: $(STAMP)
	mkdir -p $(BENCH_OUTPUT)
	$(foreach name,$(BENCH),$(BIN)/python benchmarks/$(name).py $(BENCH_$(name)) --output $(BENCH_OUTPUT)/$(name).json &&) :

# the pages and the API as a site in site/, read with `python -m http.server -d site`
docs: $(DOCS_STAMP)
	$(BIN)/python -m mkdocs build --strict

lint: $(STAMP)
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy

format: $(STAMP)
	$(BIN)/python -m ruff check --fix .
	$(BIN)/python -m ruff format .

install: $(STAMP)

$(STAMP): setup.cfg pyproject.toml
	@test -x $(BIN)/python && $(BIN)/python -m pip --version >/dev/null 2>&1 || { \
	  test -n "$(PYTHON)" && $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null || { \
	    echo 'Python 3.10 or newer is needed and was not found; name one: make PYTHON=/path/to/python3 ...' >&2; exit 1; }; \
	  $(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	    echo '$(PYTHON) cannot make virtual environments; install its venv package (Debian, Ubuntu: python3-venv)' >&2; exit 1; }; \
	  echo 'creating $(VENV) with $(PYTHON)'; \
	  $(PYTHON) -m venv --clear $(VENV); }
	@echo 'installing into $(VENV): about 3 minutes and 6 GB (PyTorch) the first time'
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@$(BIN)/python -c 'import torchvision' || { \
	  echo 'torch and torchvision in $(VENV) do not fit together; see docs/troubleshooting.md' >&2; exit 1; }
	@touch $@

# with the dependencies of the newest, if the oldest allows them; linked, for nnU-Net 2.7 finds trainers in no other way
$(OLDEST_STAMP): $(STAMP)
	rm -rf $(OLDEST_FOLDER)
	$(BIN)/python -m pip install --quiet --no-deps --target $(OLDEST_FOLDER) nnunetv2==$(OLDEST)
	$(WITH_OLDEST) $(BIN)/python -m pip check
	$(WITH_OLDEST) $(BIN)/alhvr link
	@touch $@

# MONAI itself as well, for MONAI Deploy is a folder inside it
$(APPS_STAMP): $(STAMP) $(APPS_LISTS)
	rm -rf $(APPS)
	$(BIN)/python -m venv $(APPS)
	own=$$($(BIN)/python -c '$(SITE_PACKAGES)') && over=$$($(APPS)/bin/python -c '$(SITE_PACKAGES)') && \
	  echo "import site; site.addsitedir('$$own')" > "$$over/own.pth"
	$(APPS)/bin/python -m pip install --quiet --no-deps --ignore-installed -r $(word 1,$(APPS_LISTS)) \
	  monai==$$($(BIN)/python -c 'from importlib.metadata import version; print(version("monai"))')
	$(APPS)/bin/python -m pip install --quiet -r $(word 2,$(APPS_LISTS))
	@touch $@

$(DOCS_STAMP): $(STAMP)
	$(BIN)/python -m pip install --quiet --editable '.[docs]'
	@touch $@

clean:
	rm -rf build dist site *.egg-info demo_output $(BENCH_OUTPUT) .pytest_cache .mypy_cache .ruff_cache
	find . -path ./$(VENV) -prune -o -name __pycache__ -type d -exec rm -rf {} +

distclean: clean
	rm -rf $(VENV)
