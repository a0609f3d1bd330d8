#!/bin/sh
# Installs what a fresh clone or machine lacks: the npm packages, Node among them, and a
# redis-server; with --tests also the programs that tests run. Says nothing when nothing is to do.
# Usage: sh src/main/setup.sh [--tests]
#
# It runs before every npm script that needs it, under any Node or none, so it is plain sh. It may
# run twice at once and be interrupted anywhere: what is done is looked at, and stamps come last.
set -eu

tests=no
[ "${1:-}" != --tests ] || tests=yes
root=$(CDPATH='' cd "$(dirname "$0")/../.." && pwd -P)
cd "$root"
stamp=node_modules/.sluice-setup
policy=/usr/sbin/policy-rc.d
policy_mark='# laid here by the set-up of Sluice for as long as it installs'
apt_lock=/run/sluice-setup.lock
held_locks=

# program, package of apt, formula of Homebrew, service that its package would start
test_programs='sshd openssh-server openssh ssh
chromium chromium chromium -
kubectl kubernetes-client kubernetes-cli -
jq jq jq -
curl curl curl -
ip iproute2 iproute2mac -
pgrep procps proctools -'

say() { echo "setup: $*" >&2; }

fail() {
  say "$*"
  exit 1
}

has() {
  [ "$1" != sshd ] || [ ! -x /usr/sbin/sshd ] || return 0
  command -v "$1" >/dev/null 2>&1
}

# --- One at a time ---------------------------------------------------------------------------

# Another setup.sh that still runs; a number alone may have been given to another program since.
is_running() {
  if [ -d /proc/self ]; then
    grep -q setup.sh "/proc/$1/cmdline" 2>/dev/null
  else
    kill -0 "$1" 2>/dev/null
  fi
}

# A link is made in one step together with the process id that it holds.
lock() {
  told=no
  until ln -s "$$" "$1" 2>/dev/null; do
    holder=$(readlink "$1" || :)
    if [ -n "$holder" ] && ! is_running "$holder"; then
      take_over "$1" "$holder"
      continue
    fi
    [ -w "$(dirname "$1")" ] || fail "cannot write $(dirname "$1")"
    [ $told = yes ] || [ -z "$holder" ] || say "waiting for another set-up (process $holder)"
    told=yes
    sleep 0.2
  done
  held_locks="$1 $held_locks"
}

# Of several that find a holder dead one may remove its lock, and only if it is still that one's.
take_over() {
  if ln -s "$$" "$1.$2" 2>/dev/null; then
    [ "$(readlink "$1" || :)" != "$2" ] || rm -f "$1"
    rm -f "$1.$2"
  else
    taker=$(readlink "$1.$2" || :)
    [ -z "$taker" ] || is_running "$taker" || rm -f "$1.$2"
    sleep 0.1
  fi
}

clean_up() {
  for held in $held_locks; do
    # The policy belongs to the holder of this lock; another clone's set-up may hold it now.
    [ "$held" != $apt_lock ] || restore_policy
    rm -f "$held"
  done
  held_locks=
}

# --- npm packages ----------------------------------------------------------------------------

wanted_stamp() { { uname -sm && cksum package.json package-lock.json; } 2>/dev/null; }

packages_are_there() {
  [ -x node_modules/.bin/node ] && [ -f $stamp ] && [ "$(cat $stamp)" = "$1" ]
}

install_packages() {
  # npm runs from the Node that it is about to replace if the clone's own comes first.
  outside=$(printf %s "$PATH" | tr : '\n' | grep -v 'node_modules/\.bin$' | tr '\n' :)
  (PATH=${outside%:} && command -v npm >/dev/null 2>&1) ||
    fail 'npm is missing: install any Node with npm (https://nodejs.org), then try again'
  say 'installing npm packages (this takes a moment)'
  rm -f $stamp
  mkdir -p .sluice
  log=.sluice/setup.log
  if ! PATH=${outside%:} npm ci --no-audit --no-fund --loglevel=error </dev/null >$log 2>&1; then
    head -n 20 $log >&2
    fail "npm ci failed, $log has it all"
  fi
  rm -f $log
  check_node
  printf '%s\n' "$1" >$stamp.$$
  mv $stamp.$$ $stamp
}

check_node() {
  [ -x node_modules/.bin/node ] ||
    fail "npm did not run the install script of the package 'node': is ignore-scripts set?"
  version=$(node_modules/.bin/node --version)
  case $version in
    v24.1[2-9].* | v24.[2-9][0-9].* | v2[5-9].* | v[3-9][0-9].*) ;;
    *) fail "Node 24.12 or later is needed, package.json brings $version" ;;
  esac
}

# --- Programs --------------------------------------------------------------------------------

# Debian's packages start their service when installed and at each boot, and nobody asked for one.
forbid_services() {
  restore_policy
  if [ -e $policy ]; then
    # One that forbids already (as in every Docker image) may stay.
    answer=0
    $policy ssh start >/dev/null 2>&1 || answer=$?
    [ $answer != 101 ] || return 0
    mv $policy $policy.before-sluice
  fi
  printf '#!/bin/sh\n%s\nexit 101\n' "$policy_mark" >$policy
  chmod 755 $policy
}

# Also mends what a set-up that was killed has left.
restore_policy() {
  if [ -w $policy ] && grep -qsF "$policy_mark" $policy; then rm -f $policy; fi
  if [ -e $policy.before-sluice ] && [ ! -e $policy ]; then
    mv $policy.before-sluice $policy
  fi
}

apt_install() {
  apt_options='-y -q --no-install-recommends -o DPkg::Lock::Timeout=120'
  # shellcheck disable=SC2086
  apt-get install $apt_options "$1" </dev/null
}

# The lists of a machine may be missing or too old to find a package: then, and only then, new ones.
apt_with_lists() {
  apt_install "$1" || { apt-get update -q </dev/null && apt_install "$1"; }
}

# PACKAGE SERVICE: installs by apt, without a word unless it fails and without starting a service.
install_by_apt() {
  lock $apt_lock
  forbid_services
  mkdir -p .sluice
  log=$root/.sluice/setup-apt.log
  installed=0
  DEBIAN_FRONTEND=noninteractive apt_with_lists "$1" >"$log" 2>&1 || installed=$?
  if [ $installed = 0 ]; then
    rm -f "$log"
    if [ "$2" != - ] && has systemctl; then
      systemctl disable --quiet "$2.service" >/dev/null 2>&1 || say "its service $2 starts at boot"
    fi
  else
    tail -n 5 "$log" >&2
  fi
  restore_policy
  rm -f $apt_lock
  return $installed
}

can_apt() { [ "$(id -u)" = 0 ] && has apt-get; }

# NAME APT_PACKAGE BREW_FORMULA SERVICE: fails if the machine offers no way.
install_program() {
  if can_apt; then
    say "installing $2 (apt-get)"
    install_by_apt "$2" "$4" && has "$1"
  elif has brew; then
    say "installing $3 (brew)"
    HOMEBREW_NO_AUTO_UPDATE=1 brew install --quiet "$3" </dev/null >&2 && has "$1"
  else
    return 1
  fi
}

# Debian's redis-tools carries the server's program under another name, and no service.
link_redis() {
  carried=$(command -v redis-check-rdb || command -v valkey-check-rdb) || return 1
  ln -sf "$carried" node_modules/.bin/redis-server
  case $(node_modules/.bin/redis-server --version 2>/dev/null </dev/null) in
    *erver*v=*) return 0 ;;
  esac
  rm -f node_modules/.bin/redis-server
  return 1
}

has_redis() {
  has redis-server || has valkey-server || [ -x node_modules/.bin/redis-server ]
}

make_sure_of_redis() {
  link_redis ||
    { can_apt && install_program redis-check-rdb redis-tools redis - && link_redis; } ||
    install_program redis-server redis-server redis redis-server ||
    install_program valkey-server valkey-server valkey valkey-server ||
    fail 'redis-server is missing and cannot be installed from here. Install it yourself
  Debian, Ubuntu  sudo apt-get install redis-server
  Fedora          sudo dnf install valkey
  Alpine          apk add redis
  Arch            sudo pacman -S valkey
  macOS           brew install redis
or set REDIS_URL to a Redis of yours.'
}

# What cannot be had makes its tests fail, which name the command; the others can still run.
make_sure_of_test_programs() {
  while read -r name package formula service; do
    has "$name" || install_program "$name" "$package" "$formula" "$service" ||
      say "warning: $name is missing and its tests will fail: apt-get install $package"
  done <<END
$test_programs
END
}

lacks_test_programs() { ! { has sshd && has chromium && has kubectl && has jq && has curl && has ip && has pgrep; }; }

# ---------------------------------------------------------------------------------------------

now=$(wanted_stamp) || fail "package.json or package-lock.json is missing in $root"
needs_packages=no
packages_are_there "$now" || needs_packages=yes
needs_redis=no
[ -n "${REDIS_URL:-}" ] || has_redis || needs_redis=yes
needs_programs=no
[ $tests = no ] || ! lacks_test_programs || needs_programs=yes
case "$needs_packages$needs_redis$needs_programs" in nonono) exit 0 ;; esac

trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP
mkdir -p -m 700 .sluice
lock "$root/.sluice/setup.lock"
# Another set-up may have done it all while this one waited.
packages_are_there "$now" || install_packages "$now"
[ -n "${REDIS_URL:-}" ] || has_redis || make_sure_of_redis
[ $tests = no ] || make_sure_of_test_programs
