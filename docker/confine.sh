#!/usr/bin/env bash
# Runs a command in the root of an image as an engine would: the root read-only, /tmp in memory, DATA at /data, a user
# without rights, its own processes and mounts. The network is the machine's. The environment is the caller's.
#
#   docker/confine.sh ROOT DATA UID COMMAND...
set -euo pipefail
if [ -z "${CONFINED:-}" ]; then
  CONFINED=1 exec unshare --mount --propagation private --pid --fork --kill-child "$0" "$@"
fi
unset CONFINED
root=$1 data=$2 uid=$3
shift 3
mount --bind "$root" "$root"
mount -t proc -o nosuid,nodev,noexec proc "$root/proc"
mount -t tmpfs -o mode=755,nosuid,noexec,size=64k tmpfs "$root/dev"
for device in null zero full random urandom; do
  touch "$root/dev/$device"
  mount --bind "/dev/$device" "$root/dev/$device"
done
mount -t tmpfs -o mode=1777,nosuid,nodev,noexec,size=1g tmpfs "$root/tmp"
mount --bind "$data" "$root/data"
mount -o remount,bind,ro "$root"
exec /usr/sbin/chroot "$root" setpriv --reuid="$uid" --regid="$uid" --clear-groups --no-new-privs \
  --inh-caps=-all --bounding-set=-all "$@"
