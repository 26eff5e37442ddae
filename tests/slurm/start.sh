#!/usr/bin/env bash
# Starts a real SLURM of one node on this machine, installed first where it is missing, and prints its configuration:
#
#   export SLURM_CONF=$(bash tests/slurm/start.sh)      sbatch, squeue and the others now talk to it
#   bash tests/slurm/stop.sh                            stops it
#
# An argument names the folder that it lives in, a cluster a folder: ports, keys and sockets are its own, and a SLURM
# that the machine has already is not touched. One that is up is left as it is.
#
# Only to install takes root, by apt-get. Status 77, with one line: SLURM cannot be had on this machine. Status 1, with
# one line: it does not start.
set -euo pipefail

folder=${1:-/tmp/rlm-slurm-$(id -u)}
cannot() { echo "SLURM cannot be had here: $1" >&2; exit 77; }
failed() { echo "SLURM does not start: $1, see the logs in $folder" >&2; exit 1; }

# Daemons live in sbin, which users' paths may lack.
PATH=$PATH:/usr/sbin:/sbin
missing() { ! type -P munged slurmctld slurmd sbatch >/dev/null; }

install() {
    type -P apt-get >/dev/null || cannot 'slurm-wlm and munge are not installed, and there is no apt-get to do it'
    [ "$(id -u)" = 0 ] || cannot 'slurm-wlm and munge are not installed, and only root may do it'
    export DEBIAN_FRONTEND=noninteractive
    local log
    log=$(mktemp)
    { apt-get install -qy --no-install-recommends slurm-wlm munge ||
        { apt-get update -q && apt-get install -qy --no-install-recommends slurm-wlm munge; }; } >"$log" 2>&1 </dev/null ||
        cannot "apt-get cannot install slurm-wlm and munge: $(grep -m1 '^E:' "$log" || tail -n1 "$log")"
    rm "$log"
    hash -r
}

free_port() {
    local port
    while port=$((20000 + RANDOM % 10000)); (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; do :; done
    echo "$port"
}

configure() {
    local host cpus memory
    # Two at least, whatever this shell has for its own threads: a job of two tasks must fit.
    cpus=$(env -u OMP_NUM_THREADS nproc) && [ "$cpus" -ge 2 ] || cpus=2
    host=$(hostname -s) memory=$(awk '/^MemTotal/ {print int($2 / 1024)}' /proc/meminfo)
    cat >"$folder/slurm.conf" <<CONF
ClusterName=rlm
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$(free_port)
SlurmdPort=$(free_port)
SlurmUser=$(id -un)
SlurmdUser=$(id -un)
AuthType=auth/munge
# A job that is requeued waits until its credential has expired, two minutes by default.
AuthInfo=socket=$folder/munge.socket,cred_expire=5
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.log
# No systemd and no cgroups of its own: processes are followed through /proc.
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
ReturnToService=2
JobRequeue=1
KillWait=10
# Jobs are looked at as soon as they can start, not once a minute.
SchedulerParameters=sched_interval=1,bf_interval=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
GresTypes=gpu
NodeName=$host NodeAddr=127.0.0.1 CPUs=$cpus RealMemory=$memory Gres=gpu:2
# Four jobs to a CPU. A job in urgent takes the place of those in main, which have ten seconds to save.
PartitionName=main Nodes=$host Default=YES OverSubscribe=FORCE:4 PriorityTier=1 GraceTime=10
PartitionName=urgent Nodes=$host OverSubscribe=EXCLUSIVE PriorityTier=2
CONF
    printf 'Name=gpu File=%s\n' /dev/null /dev/zero >"$folder/gres.conf"  # jobs may ask for GPUs, and get none
    # Nothing above needs cgroups, yet slurmd looks for them, and for systemd where they are of version 2. From 24.05 on
    # a setting turns that off; before, the setting says that they are of version 1, which slurmd leaves alone.
    local version plugin
    version=$(slurmd -V | grep -oE '[0-9]+\.[0-9]+' | head -n1)
    [ "$(printf '%s\n' 24.05 "$version" | sort -V | head -n1)" = 24.05 ] && plugin=disabled || plugin=cgroup/v1
    echo "CgroupPlugin=$plugin" >"$folder/cgroup.conf"
}

up() { [ -e "$folder/slurm.conf" ] && timeout 10 sinfo --noheader --format=%T 2>/dev/null | grep -qE '^(idle|mixed|alloc)'; }

missing && install
missing && cannot 'the packages slurm-wlm and munge lack a program'
mkdir -p -m 755 "$folder"
[ -O "$folder" ] || failed "$folder is another user's"
export SLURM_CONF=$folder/slurm.conf

exec 9>"$folder/lock"
flock 9  # of two that start it at once, one waits and finds it up
if ! up; then
    bash "$(dirname "${BASH_SOURCE[0]}")/stop.sh" "$folder" 9>&-  # what is left of one that died
    configure
    mkdir -p "$folder/state" "$folder/spool"
    [ -e "$folder/munge.key" ] || (umask 077 && head -c 128 /dev/urandom >"$folder/munge.key")
    munged --force --key-file="$folder/munge.key" --socket="$folder/munge.socket" --pid-file="$folder/munged.pid" \
        --log-file="$folder/munged.log" --seed-file="$folder/munged.seed" >"$folder/munged.out" 2>&1 9>&- ||
        failed 'munged ended'
    slurmctld -c >"$folder/slurmctld.out" 2>&1 9>&- || failed 'slurmctld ended'
    slurmd >"$folder/slurmd.out" 2>&1 9>&- || failed 'slurmd ended'
    for _ in {1..300}; do
        up && break
        sleep 0.1
    done
    up || failed 'the node is not idle after 30 seconds'
fi
echo "$SLURM_CONF"
