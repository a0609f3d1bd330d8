# Prints how the engine is, and of one that has ended the last bytes of what it said.
# $2: docker or process   $3: how many bytes
look "$2"
report seen
[ $state = exited ] || exit 0
echo
if [ -n "${status-}" ]; then
  $docker logs --tail 200 "$name" 2>&1 | tail -c "$3"
else
  # A container that never was left only the words of its launch.
  cat "$dir/launch" "$dir/log" 2>/dev/null | tail -c "$3"
fi
exit 0
