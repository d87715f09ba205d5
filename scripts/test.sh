#!/usr/bin/env bash
# Lint, type-check and test from a clean clone, in its own environment (see install.sh for its variables).
# Arguments go to pytest: scripts/test.sh -k prompt, or scripts/test.sh -m gpu -n 0 on a machine with a GPU.
set -euo pipefail
source "$(dirname "$0")/usage.sh"
cd "$(dirname "$0")/.."
venv=${VENV:-.venv}
source scripts/install.sh
install_all test "$venv"
export PATH="$PWD/$venv/bin:$PATH"
[[ $venv == /* ]] && export PATH="$venv/bin:$PATH"
export TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1
unset PYTHONDONTWRITEBYTECODE  # hundreds of processes import the same modules, and install.sh has compiled none of them

ruff check .
ruff format --check .
PYTHONPATH=.:client lint-imports --no-cache
# mypy has one core. On the other one the tests are collected: else each of the four workers would compile what they import.
pytest --collect-only -q "$@" >/dev/null 2>&1 &
mypy
wait
# Four workers on two cores, because tests of servers wait most of their time. Files that share servers stay on one worker (tests/workers.py).
pytest -q -m "not gpu" -n 4 --dist loadfile "$@"
