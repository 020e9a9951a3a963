#!/bin/bash
# Sourced with a directory: its *.sh change the caller's environment.
for hook in "$1"/*.sh; do
  # shellcheck disable=SC1090
  [ ! -f "$hook" ] || source "$hook"
done
