#!/usr/bin/env bash
# Stop what up.sh has started in FOLDER, jobs first; what is not running any more is no mistake.
set -u
folder=$1
export SLURM_CONF=$folder/slurm.conf
if timeout 5 scancel --state=PENDING --state=RUNNING --me 2> /dev/null; then :; fi

stop() {  # the process that wrote a pid file: TERM, and KILL after 5 s
  [ -r "$1" ] || return 0
  pid=$(cat "$1")
  kill "$pid" 2> /dev/null || return 0
  for _ in $(seq 50); do
    case $(ps -o stat= -p "$pid") in '' | Z*) return 0 ;; esac
    sleep 0.1
  done
  kill -KILL "$pid" 2> /dev/null || true
}
for file in slurmd-cloud0 slurmd-edge0 slurmctld munged; do
  stop "$folder/$file.pid"
done
exit 0
