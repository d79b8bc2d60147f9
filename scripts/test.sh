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
if [ "$tests" = no ]; then exec "$python" -m mypy; fi
# The types are checked beside the tests, because the tests often wait: for a process, for Slurm, or for a single thread.
# Two test files run at a time, in the order of tests/conftest.py.
types=$(mktemp)
trap 'rm -f "$types"' EXIT
"$python" -m mypy >"$types" 2>&1 &
mypy=$!
code=0
"$python" -m pytest -n 2 --dist loadfile --no-loadscope-reorder "${marks[@]}" "$@" || code=$?
wait "$mypy" || code=1
cat "$types"
exit "$code"
