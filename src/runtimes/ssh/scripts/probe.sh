# Prints what the machine has. Changes nothing, and nothing in it may hang. $2: the folder whose disk counts
echo "architecture $(uname -m)"
if gpus=$(timeout 20 nvidia-smi --query-gpu=name,memory.total --format=csv,noheader,nounits 2>&1); then
  printf '%s\n' "$gpus" | sed 's/^/gpu /'
else
  printf '%s\n' "$gpus" | tail -n 1 | sed 's/^/gpu-problem /'
fi
# On some machines nvidia-smi is fine, and CUDA does not start (error 802).
cuda=$(timeout 20 python3 -c 'import ctypes; print(ctypes.CDLL("libcuda.so.1").cuInit(0))' 2>/dev/null) && echo "cuda $cuda"
echo "disk $(df -Pk "$2" | awk 'NR == 2 { print $2, $4 }')"
command -v cloud-init >/dev/null && echo "cloud-init $(timeout 20 cloud-init status 2>/dev/null | sed -n 's/^status: //p')"
exit 0
