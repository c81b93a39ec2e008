#!/usr/bin/env bash
# Runs a command as on a machine of its own: own network (one interface without uplink, node address 192.168.250.2),
# own mounts under /run, /var/lib/cni and /dev/shm, own processes. When the command ends, everything it started ends with it, and
# nothing stays behind on this machine.
#
#   dev/in-namespace.sh COMMAND [ARGS…]
#
# Needs root, unshare and ip.
set -euo pipefail
if [ $# -eq 0 ]; then sed -n '2,8p' "$0" | sed 's/^# \{0,1\}//' >&2; exit 2; fi
if [ "$(id -u)" -ne 0 ]; then echo "$0 needs root: it makes network and mount namespaces" >&2; exit 1; fi

scratch=$(mktemp -d /tmp/coxswain-ns.XXXXXX)
pod_cgroups() { find /sys/fs/cgroup -maxdepth 3 -type d \( -name 'kubepods*' -o -name 'coxswain-*' \) 2>/dev/null | sort; }
cgroups_before=$(pod_cgroups || true)
cleanup() {
    # The processes are gone with their PID namespace; what is left are empty cgroups and the scratch directory.
    pod_cgroups | while read -r dir; do
        grep -qxF "$dir" <<<"$cgroups_before" && continue
        find "$dir" -depth -type d -exec rmdir {} + 2>/dev/null || true
    done
    rm -rf --one-file-system "$scratch" 2>/dev/null || true
}
trap cleanup EXIT
mkdir -p "$scratch/run" "$scratch/cni"

export COXSWAIN_NAMESPACE=1
status=0
unshare --net --mount --pid --fork --kill-child=SIGKILL --mount-proc --propagation private -- \
    bash -euo pipefail -c '
        scratch=$1; shift
        mkdir -p /var/lib/cni
        mount --bind "$scratch/run" /run
        mount --bind "$scratch/cni" /var/lib/cni
        # Names there are made of process numbers, which begin anew in here.
        mount -t tmpfs -o mode=1777 tmpfs /dev/shm
        mount --make-rshared /
        ip link set lo up
        ip link add eth0 type veth peer name uplink0
        ip address add 192.168.250.2/24 dev eth0
        ip link set uplink0 up
        ip link set eth0 up
        ip route add default via 192.168.250.1 dev eth0
        "$@" &
        child=$!
        trap "kill -TERM $child 2>/dev/null" TERM INT
        # A trap interrupts wait; only the end of the child ends this.
        while kill -0 "$child" 2>/dev/null; do status=0; wait "$child" || status=$?; done
        exit "$status"
    ' in-namespace "$scratch" "$@" &
inner=$!
# Ends everything inside as well when this script is told to end.
trap 'kill -TERM "$inner" 2>/dev/null' TERM INT
while kill -0 "$inner" 2>/dev/null; do status=0; wait "$inner" || status=$?; done
exit "$status"
