#!/bin/sh
# Makes the file system of one container in a mount namespace of its own and becomes its program.
# Usage: container.sh FOLDER   (FOLDER/plan: variables; mounts: FROM<tab>TO<tab>ro|rw; run: the program)
# Standard error is the runtime's here, and the container's own (descriptor 4) from the program on.
set -eu
folder=$1
. "$folder/plan"
root=$folder/root
mount -t tmpfs -o "size=$disk,mode=755" container "$root"
cd "$root"
mkdir -p usr etc root home data tmp run var/log var/lib var/tmp proc dev sys
chmod 1777 tmp var/tmp data
chmod 700 root
# Read-only, so that nothing in here can change this machine, whatever it runs.
mount --bind /usr usr
mount -o remount,bind,ro usr
for name in bin sbin lib lib32 lib64; do
  if [ -L "/$name" ]; then
    ln -s "$(readlink "/$name")" "$name"
  elif [ -d "/$name" ]; then
    mkdir "$name"
    mount --bind "/$name" "$name"
    mount -o remount,bind,ro "$name"
  fi
done
ln -s ../run var/run
mount -t proc proc proc
mount -t tmpfs -o mode=755 dev dev
for name in null zero full random urandom tty; do
  touch "dev/$name"
  mount --bind "/dev/$name" "dev/$name"
done
mkdir dev/pts dev/shm
mount -t tmpfs -o mode=1777,size=64m shm dev/shm
ln -s /proc/self/fd dev/fd
for name in 0:stdin 1:stdout 2:stderr; do ln -s "/proc/self/fd/${name%:*}" "dev/${name#*:}"; done
for name in alternatives ld.so.cache ld.so.conf ld.so.conf.d localtime nsswitch.conf ssl; do
  [ ! -e "/etc/$name" ] || cp -a "/etc/$name" etc/
done
printf 'root:x:0:0:root:/root:/bin/sh\nnode:x:1000:1000::/home:/bin/sh\nnobody:x:65534:65534::/:/bin/false\n' >etc/passwd
printf 'root:x:0:\nnode:x:1000:\nnogroup:x:65534:\n' >etc/group
cp "$folder/hosts" etc/hosts
touch dev/termination-log
chmod 666 dev/termination-log
mount --bind "$folder/termination-log" dev/termination-log

mount --bind "$programs" usr/local/bin
# What images have in /app, and the engine of this folder.
mkdir -p app/test/simulators var/cache/node opt
for name in node_modules config queues processors src test/simulators; do
  mkdir -p "app/$name"
  mount --bind "$repository/$name" "app/$name"
  mount -o remount,bind,ro "app/$name"
done
cp "$repository/package.json" app/
mount --bind "$cache" var/cache/node
touch opt/node
mount --bind "$node" opt/node
while IFS="$(printf '\t')" read -r from to mode; do
  # What leads through /var/run would else be made on this machine.
  if [ -d "$from" ]; then
    mkdir -p ".$to"
  else
    mkdir -p "$(dirname ".$to")"
    touch ".$to"
  fi
  mount --bind "$from" ".$to"
  [ "$mode" = rw ] || mount -o remount,bind,ro ".$to"
done <"$folder/mounts"
[ "$read_only" = no ] || mount -o remount,ro "$root"
echo running >&3
. "$folder/run"
