#!/usr/bin/env bash
# Everything that the README's results rest on, in the order in which one rests on another: days on 2 CPU cores.
#
#     make results [RESULTS_ARGS="NAME..."]        (or benchmarks/results.sh [NAME...])
#
# CIFAR-10 is a folder of images, CIFAR10=data/cifar10 by default. Trainings lie below EXP=exp. What ended well is marked
# by EXP/results/NAME.json and not run again; a run that was interrupted goes on. NAMEs select runs below. The figures go
# to benchmarks/results/method/<processor>-<date>.json, from which benchmarks/table.py makes the list in docs/training.md.
set -uo pipefail
cd "$(dirname "$0")/.."

source benchmarks/runs.sh
CIFAR10=${CIFAR10:-data/cifar10}
EXP=${EXP:-exp}
RESULTS=${RESULTS:-benchmarks/results/method}
DONE=$EXP/results
FAILED=0
mkdir -p "$DONE"

# run NAME SCRIPT ARGUMENT...: a benchmark, whose figures are kept at once; `make_run` a command whose run others take.
run() {
  local name=$1 start=$SECONDS status
  shift
  if ! wanted "$name"; then return; fi
  echo "== $name: $*"
  call "$PYTHON" "$@" --json "$FOLDER/$name.json"
  status=$?
  ended "$name" $status "$start" "python $*"
  if ! report --add; then echo "== $name: its figures could not be kept" >&2; status=1; fi
  if [ $status = 0 ]; then mv "$FOLDER/$name.json" "$DONE/"; else FAILED=1; fi
  rm -f "$FOLDER"/*
}

make_run() {
  local name=$1 start=$SECONDS status
  shift
  if ! wanted "$name"; then return; fi
  echo "== $name: $*"
  call "$PYTHON" "$@"
  status=$?
  ended "$name" $status "$start" "python $*"
  if [ $status = 0 ]; then echo '{}' > "$DONE/$name.json"; else FAILED=1; fi
  rm -f "$FOLDER"/*
}

wanted() {
  if ! selected "$1"; then return 1; fi
  if [ -e "$DONE/$1.json" ]; then echo "== $1: is there ($DONE/$1.json)"; return 1; fi
}

run curves benchmarks/curves.py --root "$CIFAR10" --workdir "$EXP/curves"
make_run cifar10 train.py --config configs/cifar10.py "--config.data.root=$CIFAR10" --workdir "$EXP/cifar10"
make_run search search.py --config configs/cifar10.py --workdir "$EXP/cifar10"
run claim benchmarks/claim.py --workdir "$EXP/cifar10"
run ablations-digits benchmarks/ablations.py --config configs/digits.py --epochs 20 --seeds 0,1,2 --workdir "$EXP/ablations-digits"
run ablations benchmarks/ablations.py --root "$CIFAR10" --workdir "$EXP/ablations"
run relatives benchmarks/relatives.py --root "$CIFAR10" --workdir "$EXP/relatives"
run datasets benchmarks/datasets.py --workdir "$EXP/datasets"
finish $FAILED
