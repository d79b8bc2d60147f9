#!/usr/bin/env bash
# Lint, format, types and tests in the current Python environment (pip install -c constraints.txt -e '.[test]').
#   scripts/test.sh           the checks and the quick tests
#   scripts/test.sh all       the checks and all tests, also the slow tests
#   scripts/test.sh checks    the checks only: lint, format, types
#   scripts/test.sh … -- ARGS   further arguments for pytest
# The hooks in .pre-commit-config.yaml call this script too.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
marks=()
tests=yes
case "${1:-}" in
  all) marks=(-m "slow or not slow"); shift ;;
  checks) tests=no; shift ;;
esac
if [ "${1:-}" = -- ]; then shift; fi
"$python" -m ruff check .
"$python" -m ruff format --check .
"$python" -m mypy
# Two test files run at a time. Many tests wait: for a process, for Slurm, or for a single thread. The order of the files
# is that of tests/conftest.py.
if [ "$tests" = yes ]; then "$python" -m pytest -n 2 --dist loadfile --no-loadscope-reorder "${marks[@]}" "$@"; fi
