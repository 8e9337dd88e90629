#!/usr/bin/env bash
# Merges and mixtures of the experts of a finished demo, compared by examples/study.yml. What exists is left alone.
# RUNS=DIR is where the demo put everything (default: runs/demo), OUT=DIR the study's folder (default: RUNS/study), DATA what the experts
# were trained on (default: corpus).
set -euo pipefail
runs=${RUNS:-runs/demo}
out=${OUT:-$runs/study}
data=${DATA:-corpus}
base=$(python -c 'import json, sys; print(json.load(open(sys.argv[1]))["base_model_name_or_path"])' "$runs/expert-cpp/adapter_config.json")
filled() { sed "/^#/! { s#BASE#$base#; s#RUNS#$runs#; s#ROWS#$out/gate_rows.jsonl#; s#^data: corpus#data: $data# }" "examples/$1.yml" > "$out/$1.yml"; }

mkdir -p "$out"
for method in linear ties; do
  [ -d "$runs/$method" ] && continue
  filled "merge_$method"
  python -m model.merge "$out/merge_$method.yml" "$runs/$method"
done
if [ ! -d "$runs/composed-data" ]; then
  [ -f "$out/gate_rows.jsonl" ] || python -m train.data "$out/gate_rows.jsonl" --data "$data" --limit 32
  filled gate_data
  python -m model.compose "$out/gate_data.yml" "$runs/composed-data" --quantize nf4
fi
filled study
python -m eval.study "$out/study.yml" --out "$out/results"
