#!/usr/bin/env bash
# The whole study on the embedded base and corpus: base, four experts, mixture, gate, scores, report.
# Every step is a command that a user types. A step whose output exists is left alone; one that was interrupted is resumed.
set -euo pipefail
runs=${RUNS:-runs/demo}
languages="python java javascript cpp"
step() { printf '\n== %s (%d s)\n' "$1" "$SECONDS"; }
flag() { [ -d "$(dirname "$1")/.$(basename "$1").unfinished" ] && echo --resume || true; }
mkdir -p "$runs"

step "base: a small generalist, trained once and cached"
python -m train.base | tee "$runs/base.log"
base=$(tail -n 1 "$runs/base.log")

for lang in $languages; do
  out=$runs/expert-$lang
  [ -d "$out" ] && continue
  step "expert: $lang"
  python -m train.expert --lang "$lang" --base "$base" --data corpus --out "$out" $EXPERT $(flag "$out")
done

if [ ! -d "$runs/composed" ]; then
  step "mixture: composed from the four adapters, NF4"
  sed "s#BASE#$base#; s#RUNS#$runs#" examples/four_languages.yml > "$runs/compose.yml"
  python -m model.compose "$runs/compose.yml" "$runs/composed" --quantize nf4
fi

if [ ! -d "$runs/mixture" ]; then
  step "gate: Wg and Wnoise, experts frozen"
  python -m train.gate --model "$runs/composed" --data corpus --out "$runs/mixture" $GATE $(flag "$runs/mixture")
fi
