# Commands for people; each does its own set-up on a fresh Debian 12 or newer machine.
SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.ONESHELL:
.DEFAULT_GOAL := help

INVENTORY ?= inventories/lab
VENV := .venv
PLAYBOOK := $(VENV)/bin/ansible-playbook -i $(INVENTORY)
# An inventory with this file brings its own throwaway nodes.
LAB := $(wildcard $(INVENTORY)/group_vars/all/lab.yml)
SUDO := $(if $(filter 0,$(shell id -u)),,sudo)
PYTHON := $(firstword $(wildcard /usr/bin/python3) python3)

export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
export ANSIBLE_CONFIG := $(CURDIR)/ansible.cfg
export PYTHONUNBUFFERED := 1
# Without its borders Molecule leaves the lines of pytest whole.
export MOLECULE_COMMAND_BORDERS := false
export MOLECULE_GLOB := molecule/*/molecule.yml
SCENARIOS := $(notdir $(patsubst %/molecule.yml,%,$(wildcard $(MOLECULE_GLOB))))

# Shell lines that install packages on this machine, or say in a sentence why they cannot.
define INSTALL
if [ -n '$(SUDO)' ] && ! sudo -n true 2> /dev/null; then
  echo 'Packages are missing here ($(1)): run make as root, allow this user sudo without a password, or install them first.' >&2
  exit 1
fi
# An interrupted install would stop this one.
$(SUDO) roles/lab/files/finish-dpkg
$(SUDO) apt-get update -q
$(SUDO) apt-get install -y -q --no-install-recommends $(1)
endef

.PHONY: help
help: ## Show the commands
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

# The stamp carries the requirements' time, so that an interrupted install is done again.
$(VENV)/.installed: requirements.txt requirements.yml
	@echo '--- Tools of the control node into $(VENV) (about 1 minute)'
	if ! $(PYTHON) -c 'import ensurepip' 2> /dev/null || ! command -v ssh > /dev/null; then
	  $(call INSTALL,python3-venv openssh-client)
	fi
	$(PYTHON) -m venv --clear $(VENV)
	$(VENV)/bin/pip install -q --no-compile -r requirements.txt
	# Not the thousands of modules that are sent to nodes as they are; and, as pip has it, not what this Python cannot compile.
	$(VENV)/bin/python -m compileall -q -j 0 -x ansible_collections $(VENV)/lib || true
	$(VENV)/bin/ansible-galaxy collection install -r requirements.yml
	touch $@

.PHONY: run
run: $(VENV)/.installed ## Deploy INVENTORY (default inventories/lab, whose nodes are started first)
	@$(if $(LAB),$(PLAYBOOK) playbooks/lab.yml)
	$(PLAYBOOK) playbooks/site.yml
	# Nothing but the answer: no recap, no longest tasks.
	ANSIBLE_STDOUT_CALLBACK=minimal ANSIBLE_CALLBACKS_ENABLED=minimal $(PLAYBOOK) playbooks/where.yml

.PHONY: test
test: $(VENV)/.installed ## Lint, unit tests and molecule on nodes of their own
	@$(MAKE) --no-print-directory --jobs=2 --output-sync=target lint unit
	$(MAKE) --no-print-directory molecule

.PHONY: lint
lint: $(VENV)/.installed ## yamllint, ansible-lint (production profile) and ruff
	@yamllint --strict .
	ruff check .
	ruff format --check .
	ansible-lint --offline

.PHONY: unit
unit: $(VENV)/.installed ## Unit tests: the Python, the templates, the collection's build
	@# Side by side: many wait for something. A file of tests with a slow one holds nobody up.
	pytest --numprocesses=4 --dist=worksteal tests/unit $(if $(SUDO),-m "not root")
	# Root leaves nothing in this user's checkout.
	$(if $(SUDO),$(SUDO) env PYTHONDONTWRITEBYTECODE=1 $(VENV)/bin/python -m pytest -p no:cacheprovider -m root tests/unit)

.PHONY: molecule
molecule: $(VENV)/.installed ## Deploy on throwaway nodes, two clusters side by side, and use them as their users do
	@if ! command -v chromium > /dev/null; then
	  $(call INSTALL,chromium)
	fi
	# Their five nodes take up to 12.5 GiB: with less, one scenario after the other.
	jobs=$$(awk '/^MemAvailable:/ {print ($$2 > 13 * 1024 * 1024) ? 2 : 1}' /proc/meminfo)
	$(MAKE) --no-print-directory --jobs=$$jobs --keep-going $(SCENARIOS:%=molecule-%)

# Molecule's own workers show nothing before a scenario has failed. Each waits much of its time: for servers, for outages.
.PHONY: $(SCENARIOS:%=molecule-%)
$(SCENARIOS:%=molecule-%): molecule-%:
	@molecule test --scenario-name $* 2>&1 | sed --unbuffered 's/^/$*: /'

.PHONY: bench
bench: $(VENV)/.installed ## Measure the deployed INVENTORY, for benchmarks/README.md; hours
	@for part in spawn files burst accounts; do $(MAKE) --no-print-directory bench-$$part; done
	python -m benchmarks.plot

.PHONY: bench-spawn
bench-spawn: $(VENV)/.installed ## One user's start: Docker alone, upstream, ours, chown -R
	@python -m benchmarks.spawn --inventory $(INVENTORY)

.PHONY: bench-files
bench-files: $(VENV)/.installed ## The same with images of up to 200,000 files
	@python -m benchmarks.files --inventory $(INVENTORY)

# The accounts service gives homes to their users, and a network namespace is entered by root.
.PHONY: bench-burst
bench-burst: $(VENV)/.installed ## Up to 200 users at once: on a stand-in for Docker, then on the lab
	@mkdir -p build/bench
	$(SUDO) $(VENV)/bin/python -m benchmarks.burst --inventory $(INVENTORY)
	python -m benchmarks.burst --lab --inventory $(INVENTORY)

.PHONY: bench-accounts
bench-accounts: $(VENV)/.installed ## The accounts service with up to 50,000 accounts
	@$(SUDO) $(VENV)/bin/python -m benchmarks.accounts --inventory $(INVENTORY)

.PHONY: lab-down
lab-down: $(VENV)/.installed ## End the lab's nodes and remove what they made
	@$(PLAYBOOK) playbooks/lab_down.yml
