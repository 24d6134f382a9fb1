# What benchmarks/{gpu,reliability,results}.sh have in common; sourced by them, with the NAMEs that select runs.

PYTHON=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}
NAMES=" $* "
FOLDER=$(mktemp -d)
trap 'rm -rf "$FOLDER"' EXIT
SELECTED=0
STOPPED=0
CHILD=
trap 'stop 130' INT
trap 'stop 143' TERM

# stop STATUS: ends what runs. Ctrl-C does not reach a command behind `timeout`, nor does a kill of the script.
stop() {
  STOPPED=$1
  if [ -n "$CHILD" ]; then kill -TERM "$CHILD" 2> /dev/null; fi
}

# call COMMAND...: in the background, where bash acts on a signal at once; the command's exit status.
call() {
  local status
  "$@" &
  CHILD=$!
  wait "$CHILD"
  status=$?
  while kill -0 "$CHILD" 2> /dev/null; do  # a signal ended the wait, and not yet the command
    wait "$CHILD"
    status=$?
  done
  CHILD=
  return $status
}

# selected NAME: whether this run is wanted. Nobody who stops one by a signal wants the next one to begin.
selected() {
  if [ "$NAMES" != "  " ] && [[ "$NAMES" != *" $1 "* ]]; then return 1; fi
  SELECTED=1
  [ $STOPPED = 0 ]
}

# ended NAME STATUS START COMMAND: notes how a run ended, for report.py; one that was stopped has not ended.
ended() {
  if [ $STOPPED = 0 ] && { [ "$2" = 130 ] || [ "$2" = 143 ]; }; then STOPPED=$2; fi
  if [ $STOPPED != 0 ] && [ "$2" != 0 ]; then
    echo "== $1: stopped" >&2
    return
  fi
  echo "$2 $((SECONDS - $3)) $4" > "$FOLDER/$1.run"
  if [ "$2" != 0 ]; then echo "== $1: exit status $2 after $((SECONDS - $3)) s" >&2; fi
}

# report [--add]: keeps the figures of the runs that ended, if there are any.
report() {
  if compgen -G "$FOLDER/*.run" > /dev/null; then "$PYTHON" benchmarks/report.py "$FOLDER" --results "$RESULTS" "$@"; fi
}

# finish STATUS: the script's end.
finish() {
  if [ $SELECTED = 0 ]; then
    echo "found no run named $(echo $NAMES), expected some of those in $0" >&2
    exit 2
  fi
  exit $((STOPPED ? STOPPED : $1))
}
