# Ends the engine and removes what there is of it; one that is not there is no error.
# $2: docker or process   $3: seconds that it has to end by itself
mkdir -p "$home" || exit 73
lock 60
# What the launch of a container started by sudo is root's. (The `kill` of dash takes `--` after -s only.)
if [ "$2" = docker ]; then kill="$sudo kill"; else kill=kill; fi
ours=no
if lives; then
  ours=yes
elif [ -n "$pid" ] && [ -z "$(born "$pid")" ]; then
  # The runner has ended. While others of its group live, its number belongs to nobody else.
  ours=yes
fi
if [ $ours = yes ] && $kill -s TERM -- "-$pid" 2>/dev/null && [ "$2" = process ]; then
  left=$(($3 * 20))
  while $kill -s 0 -- "-$pid" 2>/dev/null && [ $left -gt 0 ]; do
    left=$((left - 1))
    sleep 0.05
  done
  $kill -s KILL -- "-$pid" 2>/dev/null
fi
if [ "$2" = docker ]; then
  tries=0
  # A launch that was cut short may still have its container made.
  inspect
  while [ -n "$status" ] && [ $tries -lt 5 ]; do
    $docker stop -t "$3" "$name" >/dev/null 2>&1
    $docker rm --force "$name" >/dev/null 2>&1
    tries=$((tries + 1))
    inspect
  done
  [ -z "$status" ] || { echo "the container $name cannot be removed" >&2; exit 70; }
fi
rm -rf "$dir"
