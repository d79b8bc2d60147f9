#!/usr/bin/env bash
# Run lint, type checks and tests in the current Python environment (pip install -c constraints.txt -e '.[test]').
#   scripts/test.sh             without the slow tests
#   scripts/test.sh all         with the slow tests
#   scripts/test.sh … -- ARGS   further arguments for pytest
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
marks=()
if [ "${1:-}" = all ]; then marks=(-m "slow or not slow"); shift; fi
if [ "${1:-}" = -- ]; then shift; fi
"$python" -m ruff check .
"$python" -m ruff format --check .
"$python" -m mypy
"$python" -m pytest "${marks[@]}" "$@"
