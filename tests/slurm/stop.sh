#!/usr/bin/env bash
# Stops the SLURM that start.sh started in the same folder, and what runs on it.
set -uo pipefail

folder=${1:-/tmp/rlm-slurm-$(id -u)}
PATH=$PATH:/usr/sbin:/sbin
export SLURM_CONF=$folder/slurm.conf

# alive NAME: whether the daemon runs whose number is in NAME.pid. The number may be another process's by now; and where
# process 1 collects no orphans, as in many containers, daemons that have ended stay in /proc as zombies (Z).
alive() {
    pid=$(cat "$folder/$1.pid" 2>/dev/null) && grep -q "($1[^)]*) [^Z]" "/proc/$pid/stat" 2>/dev/null
}

if alive slurmctld; then
    timeout 10 scancel --signal=KILL --full --user="$(id -un)" 2>/dev/null
    timeout 10 scancel --user="$(id -un)" 2>/dev/null
fi
for daemon in slurmd slurmctld munged; do
    alive "$daemon" && kill "$pid"
    for _ in {1..100}; do
        alive "$daemon" || continue 2
        sleep 0.1
    done
    kill -KILL "$pid"
done
rm -f "$folder"/*.pid "$folder/slurm.conf"
