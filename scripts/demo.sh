#!/usr/bin/env bash
# The whole study on the embedded base and corpus: base, four experts, mixture, gate, scores, report.
# Every step is a command that a user types. A step whose output exists is left alone; one that was interrupted is resumed. RUNS=DIR makes another place of runs/demo.
set -euo pipefail
runs=${RUNS:-runs/demo}
languages="python java javascript cpp"
expert_flags="--rank 64 --learning-rate 3e-3 --dropout 0 --batch-size 8 --max-length 512 --max-steps 400"
gate_flags="--learning-rate 1e-2 --batch-size 16 --max-length 512 --max-steps 60"
score_flags="--data corpus --limit 50 --max-new-tokens 256 --batch-size 50"

step() { printf '\n== %s  [%d:%02d]\n' "$1" $((SECONDS / 60)) $((SECONDS % 60)); }
resume() { if [ -d "$runs/.$1.unfinished" ]; then echo --resume; fi; }  # an interrupted run of that name goes on
absent() { [ ! -d "$runs/$1" ]; }

mkdir -p "$runs"
step "base: a small generalist, trained once and cached"
python -m train.base | tee "$runs/base.log"
base=$(tail -n 1 "$runs/base.log")

for lang in $languages; do
  if absent "expert-$lang"; then
    step "expert: $lang"
    python -m train.expert --lang "$lang" --base "$base" --data corpus --out "$runs/expert-$lang" $expert_flags $(resume "expert-$lang")
  fi
done

if absent composed; then
  step "mixture: composed from the four adapters, in NF4"
  sed "s#BASE#$base#; s#RUNS#$runs#" examples/four_languages.yml > "$runs/compose.yml"
  python -m model.compose "$runs/compose.yml" "$runs/composed" --quantize nf4
fi

if absent mixture; then
  step "gate: Wg and Wnoise, experts frozen"
  python -m train.gate --model "$runs/composed" --data corpus --out "$runs/mixture" $gate_flags $(resume mixture)
fi

if absent score-base; then
  step "score: base"
  python -m eval.codebleu --model "$base" --name base --out "$runs/score-base" $score_flags
fi
for lang in $languages; do
  if absent "score-expert-$lang"; then
    step "score: expert $lang"
    python -m eval.codebleu --model "$base" --adapter "$runs/expert-$lang" --lang "$lang" --name "expert-$lang" \
      --out "$runs/score-expert-$lang" $score_flags
  fi
done
if absent score-mixture; then
  step "score: mixture"
  python -m eval.codebleu --model "$runs/mixture" --name mixture --out "$runs/score-mixture" $score_flags
fi
if absent routing; then
  step "gate choices"
  python -m eval.routing --model "$runs/mixture" --data corpus --limit 50 --out "$runs/routing"
fi

step "report"
rm -rf "$runs/report"
python -m eval.report "$runs"/score-* "$runs/routing" --training "$base" "$runs"/expert-* "$runs/mixture" --out "$runs/report"
step "done"
