# Starts the engine where there is none of that name, and comes back at once. The environment is read from stdin, a
# NAME=value a line, and lies in a file that nobody else may read until the engine has it.
# $2: docker or process   $3: digest of the command   $4: text of the runner   $5…: what the runner starts
form=$2 digest_wanted=$3 runner=$4
shift 4
trap 'rm -f "$home/env.$$"' EXIT
mkdir -p "$home" && cat >"$home/env.$$" || exit 73
lock 30
look "$form"
outcome=adopted
# The runner may have been killed while its container went on: the next one follows that.
[ "$form" = docker ] && [ "$state" = running ] && [ $alive = no ] && outcome=followed
[ $state = absent ] && outcome=started
if [ $outcome = adopted ]; then
  report adopted
  exit 0
fi
mkdir -p "$dir"
[ $outcome = followed ] && rm -f "$dir/pid"
mv "$home/env.$$" "$dir/env"
[ $outcome = followed ] || printf '%s\n' "$digest_wanted" | note digest
printf '%s' "$runner" >"$dir/run"
# All three streams and the lock are let go of, else the channel, or the next start, would wait for the engine's end.
setsid sh "$dir/run" "$name" "$digest_wanted" "$@" </dev/null >"$dir/launch" 2>&1 9>&- &
tries=0
until [ -s "$dir/pid" ]; do
  tries=$((tries + 1))
  [ $tries -lt 250 ] || { echo 'the runner did not begin' >&2; exit 70; }
  sleep 0.02
done
look "$form"
[ $outcome = followed ] && outcome=adopted
report $outcome
