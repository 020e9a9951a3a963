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

.PHONY: help
help: ## Show the commands
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

# The stamp carries the requirements' time, so that an interrupted install is done again.
$(VENV)/.installed: requirements.txt requirements.yml
	@echo '--- Tools of the control node into $(VENV) (about 1 minute)'
	if ! $(PYTHON) -c 'import ensurepip' 2> /dev/null || ! command -v ssh > /dev/null; then
	  $(SUDO) apt-get update -q
	  $(SUDO) apt-get install -y -q python3-venv openssh-client
	fi
	$(PYTHON) -m venv --clear $(VENV)
	$(VENV)/bin/pip install -q -r requirements.txt
	$(VENV)/bin/ansible-galaxy collection install -r requirements.yml
	touch $@

.PHONY: run
run: $(VENV)/.installed ## Deploy INVENTORY (default inventories/lab, whose nodes are started first)
	@$(if $(LAB),$(PLAYBOOK) playbooks/lab.yml)
	$(PLAYBOOK) playbooks/site.yml

.PHONY: test
test: lint unit molecule ## Lint, unit tests and molecule on nodes of their own

.PHONY: lint
lint: $(VENV)/.installed ## yamllint, ansible-lint (production profile) and ruff
	@yamllint --strict .
	ruff check .
	ruff format --check .
	ansible-lint --offline

.PHONY: unit
unit: $(VENV)/.installed ## Unit tests: the Python, the templates, the collection's build
	@pytest tests/unit

.PHONY: molecule
molecule: $(VENV)/.installed ## Deploy on throwaway nodes and use the cluster as its users do
	@if ! command -v chromium > /dev/null; then
	  $(SUDO) apt-get update -q
	  $(SUDO) apt-get install -y -q --no-install-recommends chromium
	fi
	molecule test --all

.PHONY: lab-down
lab-down: $(VENV)/.installed ## End the lab's nodes and remove what they made
	@$(PLAYBOOK) playbooks/lab_down.yml
