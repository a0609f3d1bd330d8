# Prints the length of the engine's log, and then what it holds from a byte on. $2: from   $3: how many
size=$(stat -c %s "$dir/log" 2>/dev/null || echo 0)
echo "$size"
[ "$size" -gt "$2" ] && tail -c "+$(($2 + 1))" "$dir/log" | head -c "$3"
exit 0
