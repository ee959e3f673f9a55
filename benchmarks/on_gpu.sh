#!/usr/bin/env bash
# Every test and table that needs a GPU, in under nine minutes: bash benchmarks/on_gpu.sh [FOLDER]
#
# Writes JSON, pictures and logs into FOLDER (default build/gpu) and ends with a summary of what ran, what failed and
# what was skipped because something is absent. Nothing is downloaded. Each part has a time limit of its own, so that
# one that hangs costs only itself; LIMIT is that of the whole. Exit code: the number of parts that failed.
set -u
cd "$(dirname "$0")/.." || exit 1
OUT=${1:-build/gpu}
[ -z "${PYTHON:-}" ] && [ -x .venv/bin/python ] && PYTHON=.venv/bin/python
PYTHON=${PYTHON:-python3}
mkdir -p "$OUT"
export PYTHONPATH=.${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
STARTED=$SECONDS LIMIT=${LIMIT:-530}
FAILED=0
: >"$OUT/summary.txt"

say() { echo "$*" | tee -a "$OUT/summary.txt"; }

have() { "$PYTHON" -c "import importlib.util, sys; sys.exit(any(importlib.util.find_spec(m) is None for m in sys.argv[1:]))" "$@"; }

# part NAME SECONDS COMMAND...: runs it within its limit and what is left of ours, log in FOLDER/NAME.log
part() {
    local name=$1 limit=$2 left=$((LIMIT - (SECONDS - STARTED))) begun=$SECONDS code
    shift 2
    [ "$left" -lt 5 ] && { say "skipped  $name: no time is left"; return; }
    [ "$left" -lt "$limit" ] && limit=$left
    timeout --kill-after=5 "$limit" "$@" >"$OUT/$name.log" 2>&1
    code=$?
    if [ $code -eq 0 ]; then
        say "ok       $name ($((SECONDS - begun)) s)"
    else
        FAILED=$((FAILED + 1))
        say "FAILED   $name (exit $code after $((SECONDS - begun)) s; 124: time limit), last lines of its log:"
        tail -n 5 "$OUT/$name.log" | tee -a "$OUT/summary.txt"
    fi
}

"$PYTHON" - <<'PY' | tee -a "$OUT/summary.txt"
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
    have "$module" || { say "nothing can run without the Python package ${module//_/-}: install it with pip"; exit 1; }
done

if have pytest triton PIL; then
    # These are the same tests as without a GPU; on one, the kernels are compiled and not interpreted: a hundred times,
    # which takes one core more than a minute.
    MANY=()
    have xdist && MANY=(-n 8)
    part kernel_tests 120 "$PYTHON" -m pytest -q "${MANY[@]}" tests/kernels
    if have hypothesis httpx psutil onnx; then
        part slot_tests 40 "$PYTHON" -m pytest -q tests/server/test_device_slots.py
    else
        say "skipped  slot_tests: they need hypothesis, httpx, psutil and onnx"
    fi
    if have onnx onnxscript onnxruntime; then
        part engine_tests 100 "$PYTHON" -m pytest -q -m gpu tests/export
    else
        say "skipped  engine_tests: exporting needs onnx, onnxscript and onnxruntime"
    fi
else
    say "skipped  all tests: they need pytest, triton and pillow"
fi
if have triton; then
    part kernel_speed 80 "$PYTHON" benchmarks/kernel_speed.py --out "$OUT/kernel_speed.json"
else
    say "skipped  kernel_speed: triton is absent"
fi
if have psutil matplotlib onnx onnxscript onnxruntime; then
    part engine_speed 110 "$PYTHON" benchmarks/engine_speed.py --out "$OUT/engine_speed.json"
    part engine_speed_colour 80 "$PYTHON" benchmarks/engine_speed.py --network colour --rounds 20 \
        --out "$OUT/engine_speed_colour.json"
    part row_independence 50 "$PYTHON" benchmarks/row_independence.py --out "$OUT/row_independence.json"
else
    say "skipped  engine_speed, row_independence: they need psutil, matplotlib, onnx, onnxscript and onnxruntime"
fi
if have onnxruntime tqdm matplotlib PIL; then
    part latency 40 "$PYTHON" benchmarks/latency.py --smoke --out "$OUT/latency.json"
else
    say "skipped  latency: it needs onnxruntime, tqdm, matplotlib and pillow"
fi
if have litserve; then
    part load 40 "$PYTHON" benchmarks/load/engine_alone.py --engine models/fashion/engine --backend torch
else
    say "skipped  load: litserve is absent"
fi

say "$((SECONDS - STARTED)) s in all, $FAILED parts failed; tables and JSON in $OUT"
exit $FAILED
