# Two commands on a fresh machine: `make run` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: setup run test fuzz fuzz-guided bench bench-all lint style types outside docs coverage lock deb zipapp clean

# What doesn't need each other runs side by side; `make clean test` is one after the other.
ifeq ($(filter clean,$(MAKECMDGOALS)),)
MAKEFLAGS += --jobs=2
endif

# Compiled here, since an editable installation is not, and some shells forbid it at each start.
setup: $(VENV)/.ready
	@$(BIN)/python -m compileall -q src

$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --require-hashes --requirement constraints.txt
	$(BIN)/pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@

run: setup
	$(BIN)/zaplock compare 80G
	@echo "zaplock is $(BIN)/zaplock: type '. $(BIN)/activate', and zaplock alone will do"

lint: style types outside

style: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup
	$(BIN)/mypy --strict src tests/outside

# What a project that uses zaplock sees of its types.
outside: setup
	$(BIN)/pyright --pythonpath $(BIN)/python

# What only computes runs beside what looks at this machine (tests/conftest.py), which often waits: on two
# CPUs three are never idle.
TESTERS := 3
test: lint docs
	$(BIN)/python -m pytest --numprocesses $(TESTERS)

# The site, in out/site: without warnings, dead links or a look at the network.
docs: .venv-docs/.ready
	NO_MKDOCS_2_WARNING=1 .venv-docs/bin/mkdocs build --quiet --strict

.venv-docs/.ready: docs/requirements.txt
	$(PYTHON) -m venv .venv-docs
	.venv-docs/bin/pip install --quiet --require-hashes --requirement docs/requirements.txt
	touch $@

# Lines that quick tests run, child processes included; docs/design.md says why not the whole suite.
# What kills its processes is left out: coverage's own file may be half-written then.
COVERED := $(addprefix tests/test_,$(addsuffix .py,advise command_line diff fleet_store found hung_task \
  import import_forms lab oracle perfetto profiles protocols recording_file release release_limits replay \
  report sequential stacks_views store timeline))
FLOOR := 55
coverage: setup
	rm -rf out/coverage && mkdir -p out/coverage
	$(BIN)/coverage run -m pytest --numprocesses $(TESTERS) -k "not is_ended" \
	  $(wildcard $(COVERED)) >out/coverage/pytest.log || \
	  { cat out/coverage/pytest.log; false; }
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report --fail-under $(FLOOR) >out/coverage/report.txt || \
	  { tail -2 out/coverage/report.txt; false; }
	@grep TOTAL out/coverage/report.txt

# As many mutations of each kind as FUZZ says, a twentieth through the command line, others each time;
# and a disk that is full after each single page.
FUZZ := 20000
fuzz: setup
	ZAPLOCK_FUZZ=$(FUZZ) $(BIN)/python -m pytest --timeout 0 \
	  tests/test_fuzz.py tests/test_fuzz_cli.py tests/test_recorder_faults.py \
	  tests/test_compiled_levels.py

# One kind (tests/fuzz_guided.py has their names), led by what each input reaches in the code.
KIND := strace
SECONDS := 600
fuzz-guided: setup
	$(BIN)/pip install --quiet --no-deps --require-hashes --requirement tests/guided-requirements.txt
	$(BIN)/python tests/fuzz_guided.py $(KIND) -max_total_time=$(SECONDS)

# What can be installed without pip (docs/installing.md).
deb: setup
	packaging/deb

zipapp: setup .venv-pack/.ready
	packaging/zipapp

.venv-pack/.ready: packaging/requirements.txt
	$(PYTHON) -m venv .venv-pack
	.venv-pack/bin/pip install --quiet --require-hashes --requirement packaging/requirements.txt
	touch $@

# Choose all versions anew and write them down with their hashes.
lock:
	.ci/lock

# One table of ratios (docs/speed.md); `make bench-all` holds the same measurements against their bounds.
ROWS :=
bench: setup
	$(BIN)/python -m bench $(ROWS) $(if $(ACCEPT),--accept "$(ACCEPT)")

bench-all: setup
	$(BIN)/python -m pytest bench

clean:
	rm -rf $(VENV) .venv-docs .venv-pack .venv-bench build dist out
