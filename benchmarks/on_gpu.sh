#!/usr/bin/env bash
# Every figure and test that needs a GPU: bash benchmarks/on_gpu.sh [--dry-run] [FOLDER [PART...]]
#
# A run ends within nine minutes. What is most worth knowing comes first: the server over HTTP, t(B), the fused step,
# the start, then the same at 64 and 256 pixels, and the tests at the end. The same command again goes on: parts that
# have succeeded in FOLDER, at the same commit, are kept; those that failed or found no time run again.
#
# FOLDER (default build/gpu) gets summary.txt, which says what ran, what failed and what was skipped because something
# is absent, and results.tar.gz with the JSON, pictures and logs. Both are written after every part, so that whatever
# ends the run leaves what it has finished. Nothing is downloaded. Each part has a time limit of its own, so that one
# that hangs costs only itself; LIMIT is that of the whole run. --dry-run prints the parts and their limits and runs
# none. Named parts run alone, also those that have succeeded before; a name that is no part's is refused before
# anything runs. Exit code: the number of parts that failed.
set -u
cd "$(dirname "$0")/.." || exit 1
SCRIPT=benchmarks/on_gpu.sh
DRY=
[ "${1:-}" = --dry-run ] && { DRY=yes; shift; }
OUT=${1:-build/gpu}
ONLY=" ${*:2} " # with spaces around each name
[ -z "${PYTHON:-}" ] && [ -x .venv/bin/python ] && PYTHON=.venv/bin/python
PYTHON=${PYTHON:-python3}
export PYTHONPATH=.${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
STARTED=$SECONDS LIMIT=${LIMIT:-530}
FAILED=0 RAN=0
ENGINE=models/fashion/engine
WORK=$(mktemp -d)
trap 'rm -rf "$WORK"' EXIT

# Every part, as its own line below names it.
PARTS=" $(sed -nE 's/^.*\bpart ([a-z0-9_]+) [0-9]+ .*/\1/p' $SCRIPT | tr '\n' ' ')"
for name in $ONLY; do
    [[ "$PARTS" == *" $name "* ]] || { echo "no part is called $name; the parts are:$PARTS" >&2; exit 1; }
done
COMMIT=$(git rev-parse HEAD 2>/dev/null || echo unknown)
DONE= # the parts of earlier runs that succeeded
if [ ! "$DRY" ]; then
    mkdir -p "$OUT"
    if tar -xzf "$OUT/results.tar.gz" -C "$WORK" 2>/dev/null; then
        if [ "$(cat "$WORK/commit" 2>/dev/null)" = "$COMMIT" ]; then
            DONE=" $(sed -nE 's/^(ok|kept) +([a-z0-9_]+).*/\2/p' "$WORK/summary.txt" | grep -v ^plan_ | tr '\n' ' ')"
        else
            echo "the results in $OUT are of another commit: every part runs, and they are replaced" >&2
            rm -rf "${WORK:?}"/*
        fi
    fi
    rm -f "$WORK/summary.txt"
    echo "$COMMIT" >"$WORK/commit"
fi

say() { [ "$DRY" ] || echo "$*" | tee -a "$WORK/summary.txt"; }

# Written whole and then moved, so that a run that is killed here leaves the ones before.
keep() {
    cp "$WORK/summary.txt" "$OUT/summary.txt"
    tar -czf "$OUT/.results.part" -C "$WORK" . && mv "$OUT/.results.part" "$OUT/results.tar.gz"
}

have() { [ "$DRY" ] || "$PYTHON" -c "import importlib.util, sys; sys.exit(any(importlib.util.find_spec(m) is None for m in sys.argv[1:]))" "$@"; }

# Whether one of these parts is to run: plans lie beside the engine, not in the results, and are built for them alone.
missing() {
    local name
    [[ "$ONLY" =~ [^\ ] ]] && return 0
    for name in "$@"; do [[ "$DONE" == *" $name "* ]] || return 0; done
    return 1
}

asked() { [[ ! "$ONLY" =~ [^\ ] || "$ONLY" == *" $1 "* ]]; }

# skip "NAMES" REASON: says of those that were asked for why they do not run
skip() {
    local name names=
    for name in $1; do asked "$name" && names+=", $name"; done
    [ "$names" ] && say "skipped  ${names#, }: $2"
}

# part NAME SECONDS COMMAND...: runs it within its limit and what is left of ours, log in NAME.log; its exit code
part() {
    local name=$1 limit=$2 left=$((LIMIT - (SECONDS - STARTED))) begun=$SECONDS code
    shift 2
    asked "$name" || return 1
    if [[ "$DONE" == *" $name "* && ! "$ONLY" =~ [^\ ] ]]; then
        RAN=$((RAN + 1))
        say "kept     $name: it succeeded before"
        return 0
    fi
    RAN=$((RAN + 1))
    [ "$DRY" ] && { printf '%s ' "$name" "$limit" && printf '%q ' "$@" && echo; return; }
    [ "$left" -lt 5 ] && { say "skipped  $name: no time is left; the same command again goes on"; return 1; }
    [ "$left" -lt "$limit" ] && limit=$left
    timeout --kill-after=5 "$limit" "$@" >"$WORK/$name.log" 2>&1
    code=$?
    if [ $code -eq 0 ]; then
        say "ok       $name ($((SECONDS - begun)) s)"
    else
        FAILED=$((FAILED + 1))
        say "FAILED   $name (exit $code after $((SECONDS - begun)) s; 124: time limit), last lines of its log:"
        tail -n 5 "$WORK/$name.log" | tee -a "$WORK/summary.txt"
    fi
    keep
    return $code
}

[ "$DRY" ] || "$PYTHON" - <<'PY' | tee -a "$WORK/summary.txt"
import importlib.metadata as metadata, platform
print("Python", platform.python_version())
for name in ("torch", "triton", "numpy", "array-api-compat", "safetensors", "onnx", "onnxscript", "onnxruntime",
             "onnxruntime-gpu", "tensorrt-cu13", "tensorrt-rtx", "litserve", "pytest", "psutil", "matplotlib", "tqdm"):
    try:
        print(f"  {name} {metadata.version(name)}")
    except metadata.PackageNotFoundError:
        print(f"  {name} absent")
try:
    import torch
    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        print(f"GPU: {torch.cuda.get_device_name()}, {total / 2**30:.0f} GiB, "
              f"capability {'.'.join(map(str, torch.cuda.get_device_capability()))}, CUDA {torch.version.cuda}")
    else:
        print("GPU: none that PyTorch finds; the parts below run on the CPU, or are skipped")
except ImportError:
    print("GPU: unknown, PyTorch is absent")
PY

for module in torch numpy array_api_compat safetensors; do
    have "$module" || { say "nothing can run without the Python package ${module//_/-}: install it with pip"; keep; exit 1; }
done

TESTS=
have pytest triton PIL && TESTS=yes ||
    skip "engine_tests server_tests tensorrt_tests kernel_tests slot_tests" "they need pytest, triton and pillow"
EXPORTS=
have onnx onnxscript onnxruntime psutil && EXPORTS=yes ||
    skip "engine_tests" "exporting needs onnx, onnxscript, onnxruntime and psutil"
SERVES=
have litserve psutil onnxruntime matplotlib tqdm triton && SERVES=yes ||
    skip "served cold_start served_64px served_256px" \
        "they need litserve, psutil, onnxruntime, matplotlib, tqdm and triton"

# R*, its share over HTTP, p50 and p99 at load 0.8: step by step, and in shrinking batches of whole requests.
CAPACITY="benchmarks/load/capacity.py --brief --networks real --backend torch --capacity 64 --seconds 5"
[ "$SERVES" ] && part served 120 "$PYTHON" $CAPACITY --engine $ENGINE --logs "$WORK/served" --out "$WORK/served.json"
if [ "$EXPORTS" ] && have matplotlib; then
    part engine_speed 75 "$PYTHON" benchmarks/engine_speed.py --batches 1 2 4 8 16 32 64 128 256 512 \
        --backends torch onnxruntime-cuda --out "$WORK/engine_speed.json"
fi
if have triton; then
    part kernel_speed 60 "$PYTHON" benchmarks/kernel_speed.py --out "$WORK/kernel_speed.json"
else
    skip "kernel_speed" "triton is absent"
fi
[ "$SERVES" ] && part cold_start 70 "$PYTHON" benchmarks/cold_start.py --backend torch --repeats 1 --requests 20 \
    --out "$WORK/cold_start.json"
if [ "$EXPORTS" ] && have matplotlib; then
    part engine_speed_64px 45 "$PYTHON" benchmarks/engine_speed.py --network 64px --rounds 20 --batches 1 8 64 \
        --backends torch --out "$WORK/engine_speed_64px.json"
    part engine_speed_256px 45 "$PYTHON" benchmarks/engine_speed.py --network 256px --rounds 20 --batches 1 8 64 \
        --backends torch --out "$WORK/engine_speed_256px.json"
    [ "$SERVES" ] && part random_64px 30 "$PYTHON" benchmarks/random_engine.py 64px --out "$WORK/64px" &&
        part served_64px 120 "$PYTHON" $CAPACITY --engine "$WORK/64px/engine" --logs "$WORK/served_64px" \
            --out "$WORK/served_64px.json"
    [ "$SERVES" ] && part random_256px 30 "$PYTHON" benchmarks/random_engine.py 256px --out "$WORK/256px" &&
        part served_256px 120 "$PYTHON" $CAPACITY --engine "$WORK/256px/engine" --logs "$WORK/served_256px" \
            --out "$WORK/served_256px.json"
fi

# Eight at a time, where they can: on a GPU the kernels' tests are the same as elsewhere, but each kernel is compiled, a
# hundred in all, and the engines' tests export a checkpoint for every kind of network.
MANY=()
have xdist && MANY=(-n 8)
[ "$TESTS" ] && [ "$EXPORTS" ] &&
    part engine_tests 85 "$PYTHON" -m pytest -q "${MANY[@]}" -m gpu tests/export -k "not tensorrt"
if have litserve httpx psutil onnx onnxruntime; then
    [ "$TESTS" ] && part server_tests 30 "$PYTHON" -m pytest -q -m gpu tests/server/test_gpu.py
    part row_independence 40 "$PYTHON" benchmarks/row_independence.py --backends torch onnxruntime-cuda \
        --out "$WORK/row_independence.json"
else
    skip "server_tests row_independence" "they need litserve, httpx, psutil, onnx and onnxruntime"
fi
if [ "$EXPORTS" ] && have matplotlib; then
    part engine_speed_colour 45 "$PYTHON" benchmarks/engine_speed.py --network colour --rounds 20 \
        --batches 1 8 32 128 --backends onnxruntime-cpu torch onnxruntime-cuda --out "$WORK/engine_speed_colour.json"
    # TensorRT measures kernels while it builds, so it gets three batch sizes, and a table of its own with them.
    PLANNED=()
    if missing engine_speed_tensorrt tensorrt_tests; then
        have tensorrt && part plan_tensorrt 35 "$PYTHON" -m export plan $ENGINE --backend tensorrt --buckets 1,8,64 &&
            PLANNED+=(tensorrt)
        have tensorrt_rtx && part plan_tensorrt_rtx 10 "$PYTHON" -m export plan $ENGINE --backend tensorrt-rtx \
            --buckets 1,8,64 && PLANNED+=(tensorrt-rtx)
    fi
    if [ ${#PLANNED[@]} -gt 0 ] || ! missing engine_speed_tensorrt tensorrt_tests; then
        part engine_speed_tensorrt 25 "$PYTHON" benchmarks/engine_speed.py --backends torch "${PLANNED[@]}" \
            --batches 1 8 64 --out "$WORK/engine_speed_tensorrt.json"
        [ "$TESTS" ] && part tensorrt_tests 25 "$PYTHON" -m pytest -q -m gpu tests/export -k tensorrt
    else
        skip "engine_speed_tensorrt tensorrt_tests" "no plan; they need tensorrt (11) or tensorrt-rtx"
    fi
else
    skip "engine_speed engine_speed_64px engine_speed_256px random_64px random_256px engine_speed_colour \
plan_tensorrt plan_tensorrt_rtx engine_speed_tensorrt tensorrt_tests" "they need matplotlib beside what exporting needs"
fi
if [ "$TESTS" ]; then
    part kernel_tests 45 "$PYTHON" -m pytest -q "${MANY[@]}" tests/kernels
    if have hypothesis httpx psutil onnx; then
        part slot_tests 20 "$PYTHON" -m pytest -q tests/server/scheduler/test_device_slots.py
    else
        skip "slot_tests" "they need hypothesis, httpx, psutil and onnx"
    fi
fi
if have onnxruntime tqdm matplotlib PIL; then
    part latency 15 "$PYTHON" benchmarks/latency.py --smoke --out "$WORK/latency.json"
else
    skip "latency" "it needs onnxruntime, tqdm, matplotlib and pillow"
fi

[ "$DRY" ] && exit 0
[ $RAN -eq 0 ] && { say "nothing ran"; keep; exit 1; }
say "$((SECONDS - STARTED)) s in all, $FAILED parts failed; tables and JSON in $OUT/results.tar.gz"
keep
exit $FAILED
