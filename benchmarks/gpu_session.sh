#!/usr/bin/env bash
# Everything that a GPU can show, in one call of at most nine minutes: tests on its own code path and on the A10G's, benchmarks beside peers,
# the model of the card against the measurement, compute-sanitizer. Each part has its own time, and no more than is left of the nine minutes;
# what is cut leaves the parts before it whole. FOLDER then has session.log, the figures as JSON, and all else in logs.tar.gz.
#
#     bash benchmarks/gpu_session.sh [FOLDER]         default benchmarks/results/<gpu name>-<date>
#     PYTHON=python3  the interpreter, with torch, triton and pytest;  WORKERS=N  test processes;  SCALE=100  per cent of all these times
set -u
cd "$(dirname "$0")/.." || exit 2
PYTHON=${PYTHON:-python3}
SCALE=${SCALE:-100}
budget=$((540 * SCALE / 100))
grace=5 # s to end in when interrupted
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1

name=$("$PYTHON" -c 'import torch; print(torch.cuda.get_device_name() if torch.cuda.is_available() else "")' 2>/dev/null)
if [ -z "$name" ]; then
    echo "gpu_session.sh: $PYTHON sees no CUDA device" >&2
    exit 2
fi
slug=$(printf '%s' "$name" | tr 'A-Z ' 'a-z-' | tr -cd 'a-z0-9-')
out=${1:-benchmarks/results/$slug-$(date +%Y-%m-%d)}
mkdir -p "$out" || exit 2
case "$slug" in *h200*) card=h200 ;; *a10g*) card=a10g ;; *) card= ;; esac
arch=$("$PYTHON" -c 'import torch; print("sm%d%d" % torch.cuda.get_device_capability())')

status=0
# part NAME SECONDS COMMAND...: its output goes to NAME.log, one line about it to session.log.
part() {
    local part=$1 limit=$(($2 * SCALE / 100)) left=$((budget - grace - SECONDS)) begin=$SECONDS code
    shift 2
    [ "$limit" -le "$left" ] || limit=$left
    if [ "$limit" -lt 1 ]; then
        echo "$part: no time left" | tee -a "$out/session.log"
        status=1
        return
    fi
    echo "== $part (at most $limit s)"
    timeout -s INT -k "$grace" "$limit" "$@" >"$out/$part.log" 2>&1
    code=$?
    [ $code -eq 0 ] || status=1
    echo "$part: status $code after $((SECONDS - begin)) s$([ $code -eq 124 ] || [ $code -eq 137 ] && echo ', cut')" | tee -a "$out/session.log"
    tail -n 12 "$out/$part.log"
}

workers=()
if "$PYTHON" -c 'import xdist' 2>/dev/null; then
    # Compilers are what takes the time: a process for each core but two, each with 9 GB of the card.
    fit=$("$PYTHON" -c 'import os, torch; print(max(1, min(os.cpu_count() - 2, torch.cuda.mem_get_info()[0] // 9_000_000_000)))')
    workers=(-n "${WORKERS:-$fit}" --dist worksteal)
fi
tests=(tests/moe_kernels/test_gpu.py tests/moe_kernels/test_gpu_routing.py tests/moe_kernels/test_gpu_experts.py tests/moe_kernels/test_gpu_runtime.py)

{
    date -u +%FT%TZ
    uname -r
    nvidia-smi 2>/dev/null
} >"$out/machine.log"

part tests 190 "$PYTHON" -m pytest -m gpu -q -p no:cacheprovider --tb=short --maxfail=60 ${workers[@]+"${workers[@]}"} \
    --junitxml "$out/tests.xml" "${tests[@]}"
part bench 130 "$PYTHON" -m benchmarks.gpu_layer --out "$out/layer.json" --seconds 0.4 --budget $((115 * SCALE / 100))
if "$PYTHON" -c 'import bitsandbytes, codebleu, datasets, peft' 2>/dev/null; then # what the training commands want besides
    part tests-train 60 "$PYTHON" -m pytest -m gpu -q -p no:cacheprovider --tb=short tests/train/test_gpu.py
fi
if [ "$arch" != sm86 ]; then
    TRITON_OVERRIDE_ARCH=sm86 part tests-sm86 100 "$PYTHON" -m pytest -m gpu -q -p no:cacheprovider --tb=short --maxfail=60 \
        ${workers[@]+"${workers[@]}"} --junitxml "$out/tests-sm86.xml" "${tests[@]}" -k "not torch_compile"
fi
if [ -n "$card" ] && [ -f benchmarks/a10g.py ]; then
    part model 45 "$PYTHON" -m benchmarks.a10g --card "$card" --json "$out/model.json"
    [ -f "$out/model.json" ] && part compare 10 "$PYTHON" -m benchmarks.compare_model "$out/model.json" "$out/layer.json"
fi
if command -v compute-sanitizer >/dev/null; then
    for tool in memcheck racecheck; do
        PYTORCH_NO_CUDA_MEMORY_CACHING=1 part "sanitizer-$tool" 25 compute-sanitizer --tool "$tool" --error-exitcode 9 "$PYTHON" -m pytest -m gpu -q -p no:cacheprovider \
            tests/moe_kernels/test_gpu_experts.py -k "test_small_layers and E4-K2-256x512 and bfloat16 and (-1-uniform or -17-uniform)"
    done
fi
(cd "$out" && tar -czf logs.tar.gz --remove-files $(ls | grep -E '\.(log|xml)$' | grep -vx session.log))
echo "results in $out"
exit $status
