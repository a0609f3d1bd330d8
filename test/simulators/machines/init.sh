#!/bin/sh
# The first process of one machine, in mount, network, process and host name namespaces of its own.
# Usage: init.sh FOLDER   (FOLDER/plan holds the variables, FOLDER/sim becomes /sim)
#
# It lives as long as its standard input: the kernel closes that when the simulator dies, however
# it dies, and then ends everything in the machine with its process 1.
set -eu
folder=$1
. "$folder/plan"

echo namespaces
read -r address gateway

root=$folder/root
mount -t tmpfs -o "size=$disk,mode=755" machine "$root"
cd "$root"
mkdir -p usr etc/ssh etc/pam.d root home/ubuntu opt tmp run var/log var/lib proc dev sys workspace sim
chmod 1777 tmp
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
mount -t proc proc proc
mount -t tmpfs -o mode=755 dev dev
for name in null zero full random urandom tty; do
  touch "dev/$name"
  mount --bind "/dev/$name" "dev/$name"
done
mkdir dev/pts dev/shm
mount -t devpts -o newinstance,ptmxmode=0666,mode=620 devpts dev/pts
mount -t tmpfs -o mode=1777 shm dev/shm
ln -s pts/ptmx dev/ptmx
ln -s /proc/self/fd dev/fd
for name in 0:stdin 1:stdout 2:stderr; do ln -s "/proc/self/fd/${name%:*}" "dev/${name#*:}"; done
for name in alternatives ld.so.cache ld.so.conf ld.so.conf.d localtime login.defs nsswitch.conf ssl; do
  [ ! -e "/etc/$name" ] || cp -a "/etc/$name" etc/
done

cat >etc/passwd <<END
root:x:0:0:root:/root:/bin/bash
ubuntu:x:1000:1000:Ubuntu:/home/ubuntu:/bin/bash
sshd:x:100:65534::/run/sshd:/usr/sbin/nologin
nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin
END
cat >etc/group <<END
root:x:0:
ubuntu:x:1000:
nogroup:x:65534:
END
for user in root ubuntu sshd nobody; do echo "$user:*:20000:0:99999:7:::"; done >etc/shadow
chmod 640 etc/shadow
printf '/bin/sh\n/bin/bash\n' >etc/shells
# What the machine's sudo is made of.
for kind in auth account session; do echo "$kind sufficient pam_permit.so"; done >etc/pam.d/su
cp etc/pam.d/su etc/pam.d/other
echo "127.0.0.1 localhost $name_of_host" >etc/hosts
echo "$name_of_host" >etc/hostname
hostname "$name_of_host"
chown -R 1000:1000 home/ubuntu

mount --bind "$folder/bin" usr/local/bin
mount --bind "$folder/sim" sim
mkdir -p ".$repository" var/cache/node
mount --bind "$repository" ".$repository"
mount -o remount,bind,ro ".$repository"
mount --bind "$cache" var/cache/node
if [ ! -e ".$node" ]; then
  mkdir -p "$(dirname ".$node")"
  touch ".$node"
  mount --bind "$node" ".$node"
fi
while IFS="$(printf '\t')" read -r from to; do
  mkdir -p ".$to"
  mount --bind "$from" ".$to"
done <"$folder/mounts"
# An image without sshd: all of /usr/sbin but that, until apt-get takes the cover away.
if [ "$sshd_installed" = no ]; then
  mkdir var/lib/sbin
  mount --bind usr/sbin var/lib/sbin
  mount -t tmpfs -o mode=755 sbin usr/sbin
  (cd var/lib/sbin && ls | grep -vx sshd | sed 's|^|/var/lib/sbin/|' | xargs ln -s -t "$root/usr/sbin")
fi

# The rule that finds one's own addresses comes first everywhere: here it makes room for others.
ip rule add pref 10 lookup local
ip rule del pref 0
# Lambda lets in SSH and ping; what is aimed at another port meets silence.
if [ "$firewall" = yes ]; then
  ip rule add pref 3 iif eth0 ipproto tcp dport 22 lookup local
  ip rule add pref 4 iif eth0 ipproto icmp lookup local
  ip rule add pref 5 iif eth0 blackhole
fi
ip link set lo up
ip address add "$address" peer "$gateway" dev eth0
ip link set eth0 up

# The shell stays as process 1 and collects orphans while it waits; `exec` would leave zombies.
exec chroot "$root" /bin/sh -c '
  echo booting
  sh /sim/boot </dev/null >>/sim/console.log 2>&1 &
  cat >/dev/null
  exit 0'
