# Runs the engine as a process of the machine, and notes how it ended. $2: digest   $3…: its command
shift 2
claim
# A container's own environment reaches its first process only, and not those that log in.
tr '\0' '\n' </proc/1/environ 2>/dev/null |
  grep -E '^(PATH|LD_LIBRARY_PATH|LIBRARY_PATH|VIRTUAL_ENV|PYTHONPATH|CUDA_[A-Z_]+|NVIDIA_[A-Z_]+|HF_HOME)=' >"$dir/inherited"
for file in inherited env; do
  while IFS= read -r pair; do export "$pair"; done <"$dir/$file"
  rm -f "$dir/$file"
done
: >"$dir/log"
umask 022
"$@" >"$dir/log" 2>&1
echo $? | note exit
