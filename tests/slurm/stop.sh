#!/usr/bin/env bash
# Stops the SLURM that start.sh started in the same folder, and what runs on it.
set -uo pipefail

folder=${1:-/tmp/rlm-slurm-$(id -u)}
PATH=$PATH:/usr/sbin:/sbin
export SLURM_CONF=$folder/slurm.conf

# alive NAME NUMBER: whether that process is this daemon. The number may be another process's by now; and where process 1
# collects no orphans, as in many containers, daemons that have ended stay in /proc as zombies (Z).
alive() { grep -q "($1[^)]*) [^Z]" "/proc/$2/stat" 2>/dev/null; }

# Jobs first: without the daemons nobody would end them. Those that do not listen are killed by SLURM in ten seconds.
user=$(id -un)
if [ -e "$SLURM_CONF" ] && timeout 5 scancel --user="$user" 2>/dev/null; then
    for _ in {1..150}; do
        timeout 5 scancel --signal=KILL --full --user="$user" 2>/dev/null
        [ -n "$(timeout 5 squeue --noheader --states=running,completing 2>/dev/null)" ] || break
        sleep 0.1
    done
fi
for daemon in slurmctld slurmd munged; do
    # Read once: a daemon removes its file before it ends, and may yet hang.
    pid=$(cat "$folder/$daemon.pid" 2>/dev/null) && alive "$daemon" "$pid" || continue
    kill "$pid"
    for _ in {1..50}; do
        alive "$daemon" "$pid" || continue 2
        sleep 0.1
    done
    kill -KILL "$pid"
done
rm -f "$folder"/*.pid "$folder/slurm.conf"
