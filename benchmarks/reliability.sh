#!/usr/bin/env bash
# The reliability suite: kills at random moments, a long run, and a loader among corrupt files; an hour on 2 free cores.
#
#     benchmarks/reliability.sh [NAME...]
#
# adds its results to benchmarks/results/reliability/<processor>-<date>.json, from which benchmarks/table.py makes the
# README's table. NAMEs select runs below.
set -uo pipefail
cd "$(dirname "$0")/.."

source benchmarks/runs.sh
RESULTS=${RESULTS:-benchmarks/results/reliability}

# run NAME SCRIPT ARGUMENT...
run() {
  local name=$1 script=$2 start=$SECONDS
  shift 2
  if ! selected "$name"; then return; fi
  echo "== $name: benchmarks/$script $*"
  call "$PYTHON" "benchmarks/$script" "$@" --json "$FOLDER/$name.json"
  ended "$name" $? "$start" "python benchmarks/$script${*:+ $*}"
}

run crash-train crash.py --what train
run crash-child crash.py --what child
run crash-search crash.py --what search
run soak soak.py
report --add
finish $?
