# Writes a file that nobody else may read, from stdin. $2: its path
mkdir -p "$(dirname "$2")" && cat >"$2.$$" && mv "$2.$$" "$2"
