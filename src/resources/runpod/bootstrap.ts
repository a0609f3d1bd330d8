import type { MachineWish } from '../lease-contract.ts';

/** Where a network volume is mounted, and what Hugging Face's libraries keep weights in. */
export const VOLUME_PATH = '/workspace';
const WEIGHTS_PATH = `${VOLUME_PATH}/huggingface`;

/** Words before the script: images of engines have an entrypoint of their own, which must not run yet. */
export const ENTRYPOINT: readonly string[] = ['/bin/sh', '-c'];

/**
 * Start command of a pod: process 1, which brings up sshd and keeps the container up, whatever becomes of sshd. RunPod
 * has no cloud-init, so the host key comes by the environment, which only the account's owner can read. The script may
 * run any number of times on the same disk. It has a configuration of its own, so that nothing in an image (its keys,
 * its passwords) lets anybody else in.
 */
export const BOOTSTRAP = `set -u
umask 022
say() { echo "sluice: $*" >&2; }

# Images of engines have no sshd, and a mirror may be away for a while.
until command -v sshd >/dev/null 2>&1 || [ -x /usr/sbin/sshd ]; do
  say 'installing openssh-server'
  export DEBIAN_FRONTEND=noninteractive
  apt-get update -qq && apt-get install -y -qq --no-install-recommends openssh-server && continue
  say 'openssh-server could not be installed; trying again'
  sleep 5
done

mkdir -p /run/sshd /etc/ssh /root/.ssh
chmod 755 /run/sshd
chmod 700 /root/.ssh
# Those that the package has made: the machine proves itself with one key only.
rm -f /etc/ssh/ssh_host_*
(
  umask 077
  printf '%s' "$SLUICE_HOST_KEY" | base64 -d >/etc/ssh/ssh_host_ed25519_key
  printf '%s\\n' "$PUBLIC_KEY" >/etc/ssh/sluice_authorized_keys
  # The container's environment reaches process 1 only; engines that are started by ssh need these of it.
  for name in PATH LD_LIBRARY_PATH LIBRARY_PATH CUDA_HOME CUDA_VERSION VIRTUAL_ENV PYTHONPATH HF_HOME \\
    NVIDIA_VISIBLE_DEVICES NVIDIA_DRIVER_CAPABILITIES; do
    eval "value=\\\${$name-}"
    [ -z "$value" ] || printf '%s=%s\\n' "$name" "$value"
  done >/root/.ssh/environment
)
# Without PAM an account whose password is locked with "!" may not log in by key either.
sed -i 's/^root:![^:]*:/root:*:/' /etc/shadow
cat >/etc/ssh/sluice_sshd_config <<'END'
Port 22
HostKey /etc/ssh/ssh_host_ed25519_key
PidFile /run/sshd.pid
AuthorizedKeysFile /etc/ssh/sluice_authorized_keys
PermitRootLogin prohibit-password
PasswordAuthentication no
KbdInteractiveAuthentication no
UsePAM no
PermitUserEnvironment yes
AllowTcpForwarding local
MaxStartups 100
MaxSessions 64
ClientAliveInterval 30
ClientAliveCountMax 4
Subsystem sftp internal-sftp
END

sshd=
trap '[ -z "$sshd" ] || kill "$sshd" 2>/dev/null; exit 0' TERM INT
while :; do
  /usr/sbin/sshd -D -e -f /etc/ssh/sluice_sshd_config &
  sshd=$!
  wait "$sshd"
  say "sshd ended with $?; starting it again"
  sleep 1
done
`;

/** What the script reads, and what an engine inherits. One line a value: nothing says that others come through whole. */
export function bootstrapEnv(
  wish: Pick<MachineWish, 'authorizedKey' | 'hostKey' | 'modelCache'>,
): Record<string, string> {
  const hostKey = wish.hostKey.endsWith('\n') ? wish.hostKey : `${wish.hostKey}\n`;
  return {
    PUBLIC_KEY: wish.authorizedKey.trim(),
    SLUICE_HOST_KEY: Buffer.from(hostKey).toString('base64'),
    ...(wish.modelCache === null ? {} : { HF_HOME: WEIGHTS_PATH }),
  };
}
