#!/usr/bin/env bash
# The whole study on the embedded base and corpus: base, four experts, mixture, gate, scores, report.
# Every step is a command that a user types. A step whose output exists is left alone; one that was interrupted is resumed.
# RUNS=DIR puts everything there instead of into runs/demo. DATA=DIR takes that folder's rows in place of the corpus (docs/study.md).
set -euo pipefail
runs=${RUNS:-runs/demo}
data=${DATA:-corpus}
languages="python java javascript cpp"
length=384
base_flags=
if [ "$data" != corpus ]; then  # programs that people wrote are longer, and no two are alike: the base reads more of them
  length=512
  base_flags="--max-length $length --max-steps 1000"
fi
expert_flags="--data $data --rank 64 --learning-rate 8e-3 --dropout 0 --batch-size 16 --max-length $length --max-steps 300 --eval-limit 64 --eval-every 100"
gate_flags="--data $data --learning-rate 2e-2 --batch-size 16 --max-length $length --max-steps 180 --limit 600 --eval-limit 32 --eval-every 60"
score_flags="--data $data --limit 50 --max-new-tokens 256 --batch-size 50"

step() { printf '\n== %s  [%d:%02d]\n' "$1" $((SECONDS / 60)) $((SECONDS % 60)); }
absent() { [ ! -d "$runs/$1" ]; }
resume() { if compgen -G "$runs/.$1.unfinished/checkpoint-*" > /dev/null; then echo --resume; fi; }  # an interrupted run goes on
# Two runs at a time with half of the cores each: small models leave half of two threads idle.
# Takes the place of its subshell, so that the trap below ends the run itself.
half() { exec env OMP_NUM_THREADS=$((($(nproc) + 1) / 2)) "$@"; }
behind() { "$@" > "$runs/log/$log" 2>&1; }
trap 'kill $(jobs -p) 2> /dev/null || true' EXIT  # no run behind outlives this script
joined() { wait "$1" || { tail -n 5 "$runs/log/$log" >&2; exit 1; }; }

expert() { # in a subshell
  absent "expert-$1" || return 0
  half python -m train.expert --lang "$1" --base "$base" --out "$runs/expert-$1" $expert_flags $(resume "expert-$1")
}

score() { # likewise: name, then the model's flags
  absent "score-$1" || return 0
  half python -m eval.codebleu --name "$@" --out "$runs/score-$1" $score_flags
}

mkdir -p "$runs/log"
step "base: a small generalist, trained once and cached"
python -m train.base --data "$data" $base_flags | tee "$runs/log/base"
base=$(tail -n 1 "$runs/log/base")
# Finished steps are left alone only while they are of this base and these flags.
recipe="$base $expert_flags $gate_flags $score_flags"
if [ -f "$runs/recipe" ] && [ "$recipe" != "$(cat "$runs/recipe")" ]; then
  echo "$runs holds another recipe's results: remove it, or set RUNS to another folder" >&2
  exit 2
fi
echo "$recipe" > "$runs/recipe"

for pair in "python java" "javascript cpp"; do
  set -- $pair
  step "experts: $1 (progress in $runs/log/expert-$1) and $2"
  log=expert-$1
  behind expert "$1" & first=$!
  (expert "$2")
  joined $first
done

if absent composed; then
  step "mixture: composed from the four adapters, in NF4"
  sed "/^#/! { s#BASE#$base#; s#RUNS#$runs# }" examples/four_languages.yml > "$runs/compose.yml"
  python -m model.compose "$runs/compose.yml" "$runs/composed" --quantize nf4
fi

if absent mixture; then
  step "gate: Wg and Wnoise, experts frozen"
  python -m train.gate --model "$runs/composed" --out "$runs/mixture" $gate_flags $(resume mixture)
fi

step "scores: mixture (progress in $runs/log/score-mixture), base and experts"
log=score-mixture
behind score mixture --model "$runs/mixture" & first=$!
(score base --model "$base")
for lang in $languages; do
  (score "expert-$lang" --model "$base" --adapter "$runs/expert-$lang" --lang "$lang")
done
joined $first
if absent routing; then
  python -m eval.routing --model "$runs/mixture" --data "$data" --limit 50 --out "$runs/routing"
fi

step "report"
rm -rf "$runs/report"
python -m eval.report "$runs"/score-* "$runs/routing" --training "$base" "$runs"/expert-* "$runs/mixture" --out "$runs/report"
step "done"
