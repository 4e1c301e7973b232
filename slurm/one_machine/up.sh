#!/usr/bin/env bash
# Start a real Slurm on this machine alone, as root: munge, a controller, and the nodes cloud0 and edge0.
#
#     slurm/one_machine/up.sh FOLDER [PORT]       # a new or empty folder; PORT and the two after it
#     set -a; . FOLDER/environment; set +a        # then sinfo, sbatch, isthmus submit ...
#     slurm/one_machine/down.sh FOLDER
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
folder=$(mkdir -p "$1" && cd "$1" && pwd)
port=${2:-16817}

fail() { echo "one-machine Slurm: $1" >&2; exit 1; }
[ "$(id -u)" = 0 ] || fail "needs root"
for program in munged slurmctld slurmd sinfo; do
  command -v "$program" > /dev/null || fail "$program is not found; apt-get install slurm-wlm"
done

chmod 755 "$folder"
mkdir -p "$folder"/{state,spool-cloud0,spool-edge0,munge}
chmod 700 "$folder/munge"
sed -e "s|@FOLDER@|$folder|g" -e "s|@HOST@|$(hostname -s)|g" -e "s|@CPUS@|$(nproc)|g" \
    -e "s|@PORT@|$port|g" -e "s|@PORT1@|$((port + 1))|g" -e "s|@PORT2@|$((port + 2))|g" \
    "$here/slurm.conf.in" > "$folder/slurm.conf"
# Ranks of two "nodes" share a host name and an address, which Open MPI's collectives by node (han) take
# for one node and wait for ever. Its connections are on the loopback, and its waiting lets others compute.
cat > "$folder/environment" << END
SLURM_CONF=$folder/slurm.conf
OMPI_MCA_coll=^han
OMPI_MCA_btl_tcp_if_include=lo
OMPI_MCA_mpi_yield_when_idle=1
OMPI_ALLOW_RUN_AS_ROOT=1
OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
END
export SLURM_CONF=$folder/slurm.conf

head -c 1024 /dev/urandom > "$folder/munge/key"
chmod 400 "$folder/munge/key"
munged --force --key-file "$folder/munge/key" --socket "$folder/munge.socket" \
  --pid-file "$folder/munged.pid" --log-file "$folder/munge/log" --seed-file "$folder/munge/seed" \
  > "$folder/munge/said" 2>&1 || fail "munged does not start: $(tail -n 1 "$folder/munge/said")"
slurmctld -c
slurmd -N cloud0
slurmd -N edge0

for _ in $(seq 100); do
  [ "$(sinfo --noheader --Node --states=idle --format=%N 2> /dev/null | sort -u | wc -l)" = 2 ] && exit 0
  sleep 0.1
done
"$here/down.sh" "$folder"
fail "the nodes are not idle after 10 s; the last words of slurmctld: $(tail -n 1 "$folder/slurmctld.log")"
