#!/bin/sh
# Process 1 of a pod: holds its network, host name, IPC and process namespaces, as the pause container does.
# Usage: sandbox.sh FOLDER HOSTNAME
#
# It lives as long as its standard input: the kernel closes that when the simulator dies, however it
# dies, and then ends every container of the pod with its process 1.
set -eu
echo namespaces
read -r address gateway
hostname "$2"
ip link set lo up
ip address add "$address" peer "$gateway" dev eth0
ip link set eth0 up
ip route add default via "$gateway" dev eth0
echo up
# The shell stays as process 1 and collects orphans while it waits.
cat >/dev/null
exit 0
