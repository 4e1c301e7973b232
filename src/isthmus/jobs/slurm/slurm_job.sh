set -u
cd "${SLURM_SUBMIT_DIR:?start this with sbatch}"

# One thread count for all arithmetic; compiled kernels are kept from job to job.
export OMP_NUM_THREADS=$threads OPENBLAS_NUM_THREADS=$threads MKL_NUM_THREADS=$threads NUMBA_NUM_THREADS=$threads
export NUMBA_CACHE_DIR=${NUMBA_CACHE_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/isthmus/numba}
mkdir -p "$NUMBA_CACHE_DIR"
# Scratch on each node, of this job alone, under a name that nobody can foresee: Open MPI's sockets.
export ISTHMUS_SCRATCH=${TMPDIR:-/tmp}
TMPDIR=$(mktemp -d "$ISTHMUS_SCRATCH/isthmus-$SLURM_JOB_ID-XXXXXXXX") || {
  echo "isthmus: no scratch folder can be made in $ISTHMUS_SCRATCH; set TMPDIR to one you may write in" >&2
  exit 8
}
export TMPDIR
trap 'rm -rf "$TMPDIR"' EXIT

# A job that comes back has the same name, and goes on from its checkpoint.
python3 -m isthmus.jobs.slurm.in_allocation \
  isthmus train "$run_file" "${options[@]}" "${named[@]}" < /dev/null &
job=$!

# Told to stop, the run writes a checkpoint and ends with code 14. mpirun passes USR1 on, TERM it would obey.
stopping=no
trap 'stopping=yes; echo "USR1: the time is nearly over"; kill -USR1 "$job" 2> /dev/null' USR1
trap 'stopping=yes; echo "TERM: told to stop"; kill -USR1 "$job" 2> /dev/null' TERM
while wait "$job"; code=$?; [ "$code" -gt 128 ] && kill -0 "$job" 2> /dev/null; do :; done
[ "$code" -le 128 ] || { wait "$job"; code=$?; } # the run's own code, where a signal cut the wait short
# A run that was told before it could listen has ended by the signal itself.
[ "$stopping" = no ] || [ "$code" -le 128 ] || code=14

# Where a node, a daemon or an agent was lost: how far the run came; and no code 0 without a summary.
if [ ${#named[@]} -gt 0 ]; then # else the run's folder is that of another site's job
  python3 -m isthmus.jobs.aftermath "$code" "$runs/$SLURM_JOB_NAME-$SLURM_JOB_ID"
  code=$?
fi

# A job that somebody has cancelled stays cancelled: only a running one is put back into the queue.
state=$(scontrol show job --oneliner "$SLURM_JOB_ID" | head -n 1 | grep -o 'JobState=[A-Z]*')
if [ "$code" = 14 ] && [ "$state" = JobState=RUNNING ]; then
  echo "stopped in time: back into the queue"
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
