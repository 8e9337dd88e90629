#!/usr/bin/env bash
# Aligns a model of the demo with its own programs, and shows its pass rate before and after, on tasks that the alignment has not seen.
# Usage: scripts/align.sh MODEL LANG OUT [flags of train.align]       e.g. runs/demo/expert-python python runs/align-python
# Every step is a command that a user types. A step whose output exists is left alone.
set -euo pipefail
[ $# -ge 3 ] || { sed -n '2,4s/^# //p' "$0" >&2; exit 2; }
model=$1 lang=$2 out=$3
shift 3
sampling="-n 4 --temperature 0.8 --max-new-tokens 256 --batch-size 64"
align_flags="--learning-rate 3e-4 --batch-size 8 --max-steps 120 --max-length 384 --eval-limit 64 --eval-every 40 --sft-weight 1"

step() { printf '\n== %s  [%d:%02d]\n' "$1" $((SECONDS / 60)) $((SECONDS % 60)); }
pass_at_k() { # folder, task file, then the flags
  [ -d "$out/$1" ] || python -m eval.pass_at_k --lang "$lang" --tasks "$out/$2.jsonl" --out "$out/$1" "${@:3}"
}

mkdir -p "$out"
step "tasks: the corpus' test tasks, half of the problems to align on and half to measure with"
python - "$lang" "$out" <<'EOF'
import gzip, hashlib, sys
from json import loads
from pathlib import Path
from train.corpus import build

lang, out = sys.argv[1], Path(sys.argv[2])
lines = gzip.decompress((build() / f"{lang}.tasks.jsonl.gz").read_bytes()).decode().splitlines(keepends=True)
for side, name in enumerate(("seen", "unseen")):
    rows = [line for line in lines if hashlib.sha256(loads(line)["family"].encode()).digest()[0] % 2 == side]
    (out / f"{name}.jsonl").write_text("".join(rows))
    print(f"{name}: {len(rows)} tasks")
EOF

step "samples: the model's programs for the seen tasks, and the tasks' own solutions, judged"
pass_at_k samples seen --model "$model" $sampling
pass_at_k references seen --references

step "before: the model on the unseen tasks"
pass_at_k before unseen --model "$model" $sampling

step "align: what passed is preferred to what failed"
[ -d "$out/model" ] || python -m train.align --model "$model" --data "$out/samples" "$out/references" --out "$out/model" $align_flags "$@"

step "after: the aligned model on the unseen tasks, beside the model before"
pass_at_k after unseen --model "$out/model" $sampling --before "$out/before"
step "done"
