# What the other scripts of this folder begin with. $1: the engine's name.
set -u
umask 077
name=$1
home=${HOME:-/root}/.sluice
dir=$home/engines/$name
# A cloud image's user is not in the docker group, and may do all by sudo.
if [ "$(id -u)" = 0 ]; then sudo=; else sudo='sudo -n'; fi
docker="$sudo docker"

# When process $1 began, in ticks since the machine did; nothing where it has ended. Numbers of processes come again.
born() {
  sed -n 's/.*) //; /^Z/!p' "/proc/$1/stat" 2>/dev/null | cut -d ' ' -f 20
}

# Writes file $1 of the engine as a whole.
note() {
  cat >"$dir/$1.next" && mv "$dir/$1.next" "$dir/$1"
}

# Makes this process the engine's runner, unless there is one: a start may have been cut off before it saw its own begin.
claim() {
  echo "$$ $(born $$)" >"$dir/pid.$$"
  ln "$dir/pid.$$" "$dir/pid" || { rm -f "$dir/pid.$$"; exit; }
  rm -f "$dir/pid.$$"
}

# Whether the runner lives; sets `pid`.
lives() {
  pid= since=
  [ -s "$dir/pid" ] && read -r pid since <"$dir/pid"
  [ -n "$pid" ] && [ "$(born "$pid")" = "$since" ]
}

# What docker says of the container; sets `status`, `code` and `digest`. No answer from docker is none from us.
inspect() {
  status=
  if found=$($docker container inspect --format '{{.State.Status}} {{.State.ExitCode}} {{json .Config.Labels}}' "$name" 2>&1); then
    status=${found%% *}
    rest=${found#* }
    code=${rest%% *}
    digest=$(printf '%s\n' "$found" | sed -n 's/.*"sluice\.digest":"\([0-9a-f]*\)".*/\1/p')
    return
  fi
  case $found in *[Nn]o\ such*) ;; *)
    printf '%s\n' "$found" >&2
    exit 69 ;;
  esac
}

# How the engine is; sets `state`, `code` and `digest`. $1: docker or process.
look() {
  state=absent code= digest= alive=no
  # First this: the code is noted before the runner ends.
  lives && alive=yes
  [ -e "$dir/digest" ] && read -r digest <"$dir/digest"
  [ -n "$pid" ] && state=exited
  [ "$1" = process ] && [ $alive = yes ] && state=running
  [ -e "$dir/exit" ] && read -r code <"$dir/exit"
  [ "$1" = docker ] || return 0
  [ $alive = yes ] && state=launching
  own=$code
  inspect
  case $status in
    running | paused | restarting) state=running ;;
    exited | dead) state=exited ;;
    # It was made, and starts now or could not be started.
    *) code=$own ;;
  esac
}

# Begins what a look prints. $1: started, adopted or seen.
report() {
  printf '%s\n' "outcome $1" "state $state" "code $code" "digest $digest"
}

# One start or stop at a time on a machine.
lock() {
  exec 9>"$home/lock" && flock -w "$1" 9 || {
    echo 'another start or stop of an engine takes too long here' >&2
    exit 75
  }
}
