#!/usr/bin/env bash
# The performance suite in one go, in under 9 minutes on one GPU, and its results in one file:
#
#     benchmarks/gpu.sh [--cpu | --quick] [NAME...]
#
# writes benchmarks/results/<processor>-<date>.json, from which benchmarks/table.py makes the README's table; a profile of
# two steps goes to profile/ (view it with xprof or Perfetto). --cpu runs it at the sizes that suit 2 cores, without a
# limit of the whole; --quick only shows that everything runs, into benchmarks/results/tmp. NAMEs select runs below.
#
# Each run has a budget of seconds of its own, and what it wrote counts although it was stopped or another failed. The
# first runs are those that matter most: what the limit of the whole cuts off is at the end. With a cold compilation
# cache the steps may not end in time; the next call finds what the first one compiled in ~/.cache/bignas_jax.
set -uo pipefail
cd "$(dirname "$0")/.."

MODE=gpu
case "${1:-}" in
  --cpu) MODE=cpu; shift ;;
  --quick) MODE=quick; shift ;;
  -*) echo "found $1, expected --cpu, --quick or names of runs" >&2; exit 2 ;;
esac
source benchmarks/runs.sh
# Nothing of a run on the CPU may end up on a card that is there: neither JAX's side nor PyTorch's.
if [ $MODE != gpu ]; then export JAX_PLATFORMS=cpu CUDA_VISIBLE_DEVICES=; fi
LIMIT=$([ $MODE = gpu ] && echo 520 || echo 7200)  # seconds of the whole
RESULTS=${RESULTS:-benchmarks/results$([ $MODE = quick ] && echo /tmp)}

# run NAME SECONDS SCRIPT ARGUMENT...: within its budget and what is left of the whole.
run() {
  local name=$1 budget=$2 script=$3 start=$SECONDS left
  shift 3
  if ! selected "$name"; then return; fi
  left=$((LIMIT - SECONDS))
  if [ $MODE != gpu ]; then budget=$((LIMIT / 4)); fi
  if [ "$left" -lt "$budget" ]; then budget=$left; fi
  if [ "$budget" -lt 5 ]; then echo "== $name: no time is left"; return; fi
  echo "== $name: benchmarks/$script $*"
  call timeout --kill-after=5 "$budget" "$PYTHON" "benchmarks/$script" "$@" --json "$FOLDER/$name.json"
  local status=$? command="python benchmarks/$script${*:+ $*}"
  ended "$name" $status "$start" "${command//$FOLDER\//}"
}

# What the step before left, for bandwidth.py.
step_file() { if [ -f "$FOLDER/$1.json" ]; then echo "--step $FOLDER/$1.json"; fi; }

gpu() {
  # JAX would take three quarters of the memory, and PyTorch shares the card.
  export XLA_PYTHON_CLIENT_PREALLOCATE=false
  local paper="--dtype bfloat16 --resolutions 192,224,288,320"
  run depthwise 90 depthwise.py --all --batch 80 --resolution 224 --dtype bfloat16 --rounds 5 --write-table
  run step 160 step.py $paper --batch 80 --steps 5 --peer eager --remat --trace profile/step
  run bandwidth 20 bandwidth.py $(step_file step)
  # Both sides keep their largest memory in one process: at 320 pixels 256 images of both are about 100 GB of 80.
  run step-256 80 step.py --dtype bfloat16 --resolutions 192,224 --batch 256 --steps 3 --peer eager
  run startup 45 startup.py
  run elasticity 60 elasticity.py --batch 80 --resolution 224 --members 2 --rounds 5 --dtype bfloat16
  run scaling 40 scaling.py $(step_file step) --batch 80
  JAX_PLATFORMS=cpu run loader 25 loader.py --workers 8
  # The biggest and the smallest alone: each architecture compiles for a minute or more.
  run step-compile 100 step.py $paper --batch 80 --steps 3 --peer compile
}

cpu() {
  run step 0 step.py --remat
  run step-cifar10 0 step.py --config configs/cifar10.py --batch 128
  run bandwidth 0 bandwidth.py $(step_file step)
  run depthwise 0 depthwise.py
  run elasticity 0 elasticity.py
  run startup 0 startup.py --cold
  run scaling 0 scaling.py
  run loader 0 loader.py
}

quick() {
  run step 0 step.py --quick --trace profile/quick
  run bandwidth 0 bandwidth.py --quick $(step_file step)
  run depthwise 0 depthwise.py --quick --write-table "$FOLDER/table"
  run elasticity 0 elasticity.py --quick
  run startup 0 startup.py --quick
  run scaling 0 scaling.py --quick
  run loader 0 loader.py --quick
}

$MODE
# A part of the runs takes the place of no other.
if [ $STOPPED = 0 ] && [ "$NAMES" = "  " ]; then report; else report --add; fi
finish $?
