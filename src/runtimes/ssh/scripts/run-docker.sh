# Fetches the image, which may take long, starts the engine in it and keeps its log. $2: digest   $3: image
# $4…: what stands between `docker run` and the image, `?/path` for a path that it sees where the machine has it
# --: ends that   …: what follows the image
claim
digest=$2 image=$3
shift 3
launch() {
  $docker run --detach --name "$name" --restart no --label "sluice.digest=$digest" --env-file "$dir/env" "$@"
}
# Rotates the words: those before `--` stay in front of the image.
count=$#
seen=no
while [ $count -gt 0 ]; do
  word=$1
  shift
  case $seen$word in
    no--) seen=yes word=$image ;;
    no\?/*)
      word=${word#?}
      # A folder that docker made, being missing, would hide what the image has there.
      $sudo test -e "$word" && set -- "$@" --volume "$word:$word"
      word= ;;
  esac
  [ -n "$word" ] || [ $seen = yes ] && set -- "$@" "$word"
  count=$((count - 1))
done
inspect
if [ -z "$status" ]; then
  $docker image inspect "$image" >/dev/null 2>&1 || $docker pull --quiet "$image" || { echo $? | note exit; exit; }
  said=$(launch "$@" 2>&1)
  result=$?
  case $said in *'could not select device driver'*)
    # The driver is there, and docker was never told of it.
    $docker rm --force "$name" >/dev/null 2>&1
    $sudo nvidia-ctk runtime configure --runtime=docker && $sudo systemctl restart docker
    said=$(launch "$@" 2>&1)
    result=$? ;;
  esac
  printf '%s\n' "$said"
  [ $result = 0 ] || { echo $result | note exit; exit; }
fi
rm -f "$dir/env"
# The log ends with the container, and also when docker itself is started anew.
while
  $docker logs --follow "$name" >"$dir/log" 2>&1
  until $docker info >/dev/null 2>&1; do sleep 1; done
  inspect
  [ "$status" = running ]
do
  sleep 1
done
echo "$code" | note exit
