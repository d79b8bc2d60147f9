#!/usr/bin/env bash
# Train two small models on the same windows, one with the plain loss and one with EXACT, and compare them.
#   1. Make an environment.
#   2. Make a corpus and a tokenizer.
#   3. Pack the corpus.
#   4. Train with each loss.
#   5. Print the exposure and the validation of both runs.
# The script takes about 5 minutes on 2 cores. A second call reuses the results of the first call.
#
#   scripts/quickstart.sh [FOLDER]     results go to FOLDER (default: quickstart)
#
#   VENV=DIR      environment to make or to use (default: .venv)
#   STEPS=N       optimizer steps of each run (default: 60)
#   MEGABYTES=N   text to pack (default: 16)
#   NPROC=N       processes (default: the number of GPUs, at most 2; 2 on the CPU)
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
out=$(mkdir -p "${1:-quickstart}" && cd "${1:-quickstart}" && pwd)
venv=${VENV:-$root/.venv}
steps=${STEPS:-60}
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

if [ ! -e "$out/corpus/tokenizer/tokenizer.json" ]; then
  say "Gathering the standard library's sources and training a tokenizer on them"
  python "$root/scripts/stdlib_corpus.py" "$out/corpus" --megabytes "${MEGABYTES:-16}" --vocab-size 2048
fi
if [ ! -e "$out/packed" ]; then
  say "Packing"
  exact-titan pack "$out/corpus/documents.jsonl" --tokenizer "$out/corpus/tokenizer" \
    --seq-len 4096 --val-fraction 0.05 --out "$out/packed"
fi

gpus=$(python -c 'import torch; print(torch.cuda.device_count())')
precision=float32
if [ "$gpus" -gt 0 ]; then precision=bfloat16; fi
if [ "$gpus" -gt 2 ]; then gpus=2; fi
nproc=${NPROC:-$([ "$gpus" -gt 0 ] && echo "$gpus" || echo 2)}
for rule in standard exact; do
  say "Training with the $rule loss on $nproc processes"
  exact-titan train --nproc "$nproc" "$root/train_configs/quickstart_$rule.toml" \
    --dump_folder "$out/$rule" --dataloader.dataset_path "$out/packed" \
    --training.steps "$steps" --validator.freq "$steps" --training.mixed_precision_param "$precision"
done

say "Exposure: the left context of the targets, and the distribution of the loss under both rules"
exact-titan inspect "$out/packed" --png "$out/exposure.png"
say "Validation"
exact-titan compare "$out/standard" "$out/exact" --png "$out/quickstart.png"
echo "A row is noise if its difference is smaller than two times its ±. A larger difference is one of these two runs: another seed may not show it."
cat <<TXT

Figures:      $out/exposure.png
              $out/quickstart.png
TensorBoard:  tensorboard --logdir $out
TXT
