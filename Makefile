# SPDX-License-Identifier: Apache-2.0
# One door: every target sets up what it needs first. `make help` lists them.
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
SHELL := /bin/sh
PY := .venv/bin/python
SET_UP := .venv/set-up-from

$(SET_UP): requirements/dev.txt pyproject.toml tools/setup
	@tools/setup venv

.PHONY: help venv demo test lint format types imports docs unit bench bench-short fuzz soak posix apps init lock clean

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1\t\2/p' Makefile | expand -t 14

venv: $(SET_UP) ## the virtual environment, with Serdab in it

demo: $(SET_UP) ## build, boot and attack an instance of this machine's own programs
	@tools/setup system demo
	@$(PY) -m demos.hello.demo

apps: $(SET_UP) ## real programs at work inside, beside a plain chroot: the table of docs/apps.md
	@tools/setup system apps || echo "going on with what is here"
	@$(PY) -m demos.apps $(APPS)

test: $(SET_UP) ## everything: lint, types, imports, docs, tests, demo
	@tools/setup system test
	@$(PY) tools/check.py lint types imports docs tests

lint: $(SET_UP) ## ruff: rules and format
	@$(PY) tools/check.py lint

format: $(SET_UP) ## ruff: put the format right
	@$(PY) -m ruff check --fix-only --quiet . && $(PY) -m ruff format .

types: $(SET_UP) ## mypy, strict
	@$(PY) tools/check.py types

imports: $(SET_UP) ## the import contract
	@$(PY) tools/check.py imports

docs: $(SET_UP) ## the documentation site, strict, into site/
	@$(PY) tools/check.py docs

unit: $(SET_UP) ## the tests that need no privilege
	@$(PY) -m pytest tests/unit tests/property

bench: $(SET_UP) ## side by side with gocryptfs and securefs
	@tools/setup system bench
	@$(PY) -m bench.run
	@$(PY) -m bench.calls

bench-short: $(SET_UP) ## the same, small, in two minutes
	@tools/setup system bench
	@$(PY) -m bench.run --short
	@$(PY) -m bench.calls --short

fuzz: $(SET_UP) ## random input for SERDAB_FUZZ_SECONDS (600) a target
	@tools/setup system test
	@SERDAB_FUZZ_SECONDS=$${SERDAB_FUZZ_SECONDS:-600} $(PY) -m pytest -m fuzz

soak: $(SET_UP) ## long runs, SERDAB_SOAK_SECONDS (3600) a test
	@tools/setup system test
	@SERDAB_SOAK_SECONDS=$${SERDAB_SOAK_SECONDS:-3600} SERDAB_TEST_WHOLE=1 SERDAB_TEST_FRESH=1 \
		$(PY) -m pytest -m "soak or sampled"

posix: $(SET_UP) ## suites of others (SUITES=DIR) and a fuzz beside ext4, on mounts and inside
	@tools/setup system demo
	@$(PY) -m tests.posix $(if $(SUITES),--suites "$(SUITES)") $(POSIX)

init: $(SET_UP) ## build the static init and launcher again
	@$(PY) tools/build_init.py

lock: $(SET_UP) ## renew requirements/*.txt from pyproject.toml
	@$(PY) tools/lock.py

clean: ## what make made, the .venv included
	rm -rf .venv site dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache bench/results
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
