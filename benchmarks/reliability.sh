#!/usr/bin/env bash
# The reliability suite: kills at random moments, a long run, and a loader among corrupt files; an hour on 2 free cores.
#
#     benchmarks/reliability.sh [NAME...]
#
# adds its results to benchmarks/results/reliability/<processor>-<date>.json, from which benchmarks/table.py makes the
# README's table. NAMEs select runs below.
set -uo pipefail
cd "$(dirname "$0")/.."

PYTHON=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}
RESULTS=${RESULTS:-benchmarks/results/reliability}
NAMES=" $* "
FOLDER=$(mktemp -d)
trap 'rm -rf "$FOLDER"' EXIT

# run NAME SCRIPT ARGUMENT...
run() {
  local name=$1 script=$2 start=$SECONDS status
  shift 2
  if [ "$NAMES" != "  " ] && [[ "$NAMES" != *" $name "* ]]; then return; fi
  echo "== $name: benchmarks/$script $*"
  "$PYTHON" "benchmarks/$script" "$@" --json "$FOLDER/$name.json"
  status=$?
  echo "$status $((SECONDS - start)) python benchmarks/$script${*:+ $*}" > "$FOLDER/$name.run"
}

run crash-train crash.py --what train
run crash-child crash.py --what child
run crash-search crash.py --what search
run soak soak.py
"$PYTHON" benchmarks/report.py "$FOLDER" --results "$RESULTS" --add
