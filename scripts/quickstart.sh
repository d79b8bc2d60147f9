#!/usr/bin/env bash
# Train one small start, extend it with the plain loss and with EXACT on the same windows, and compare the pairs.
#   1. Make an environment.
#   2. Make a corpus: real text with planted facts, in short and in long windows.
#   3. Run a study: one start in short windows, then pairs of runs in windows of four times the length.
#   4. Print where the loss goes, and the differences of the pairs with their intervals. The last difference is an
#      evaluation: how much the models gain from the long context.
# Steps 2 to 4 take about 5 minutes on 2 cores. A second call reuses the results of the first call.
#
#   scripts/quickstart.sh [FOLDER]     results go to FOLDER (default: quickstart)
#
#   VENV=DIR      environment to make or to use (default: .venv)
#   STUDY=FILE    study to run (default: studies/quickstart.toml); its paths are relative to FOLDER
#   MEGABYTES=N   text to plant the facts in (default: 8)
#   TOKENS=N      training tokens of each dataset (default: 2000000)
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
study=$(realpath "${STUDY:-$root/studies/quickstart.toml}")
out=$(mkdir -p "${1:-quickstart}" && cd "${1:-quickstart}" && pwd)
venv=$(realpath -m "${VENV:-$root/.venv}")
say() { printf '\n== %s  (%ss)\n' "$1" "$SECONDS"; }

if [ ! -x "$venv/bin/exact-titan" ]; then
  say "Installing into $venv"
  python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "python3 is older than 3.11" >&2; exit 2; }
  python3 -m venv "$venv"
  "$venv/bin/pip" install --disable-pip-version-check --progress-bar off -c "$root/constraints.txt" -e "$root" |
    sed -un 's/^\(Collecting\|Installing\|Successfully\) \([^ ]*\).*/  \1 \2/p' &
  pip=$!
  # pip prints nothing for a long time during the installation.
  while sleep 4 && kill -0 $pip 2>/dev/null; do echo "  … ${SECONDS}s"; done
  wait $pip
fi
export PATH="$venv/bin:$PATH"
# A model of two layers is not faster on a GPU.
export CUDA_VISIBLE_DEVICES=""
cd "$out"
SECONDS=0

if [ ! -e corpus/documents.jsonl ]; then
  say "Gathering the standard library's sources"
  python "$root/scripts/stdlib_corpus.py" corpus --megabytes "${MEGABYTES:-8}" --vocab-size 512
fi
if [ ! -e facts ]; then
  say "Planting facts in the sources, and packing them in short and in long windows"
  exact-titan study facts corpus/documents.jsonl --tokens "${TOKENS:-2000000}" --val-tokens 65536 --out facts
fi
say "Training one start, and pairs of extensions with the plain loss and with EXACT"
exact-titan study run "$study" --out study

say "Exposure: the left context of the targets in the long windows, and the distribution of the loss under both rules"
exact-titan inspect facts/long --png exposure.png
say "Differences: EXACT minus the plain loss"
echo "context gain: what the tail gains from the context beyond 128 tokens; below 0 the context is a loss"
exact-titan study report study
say "Done"
cat <<TXT
Report:       $out/study/report/report.html
Exposure:     $out/exposure.png
TXT
