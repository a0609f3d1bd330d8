import ssh2 from 'ssh2';
import { invalidInput } from '../../domain/errors.ts';

/** How cloud-init's module cc_ssh calls the kinds of host keys. */
const KIND: Record<string, string> = {
  'ssh-ed25519': 'ed25519',
  'ssh-rsa': 'rsa',
  'ecdsa-sha2-nistp256': 'ecdsa',
  'ecdsa-sha2-nistp384': 'ecdsa',
  'ecdsa-sha2-nistp521': 'ecdsa',
};

/**
 * User data by which cloud-init lets the holders of some keys in, gives sshd this host key and no other, and starts
 * nothing. It holds a private key: Lambda Cloud's field for it is write-only, and nothing else may keep it.
 * Throws InvalidInput `lease.host_key`.
 */
export function userData(hostKey: string, authorizedKeys: readonly string[]): string {
  const { kind, publicKey } = readHostKey(hostKey);
  const config = {
    // Else keys of the image would stay beside ours.
    ssh_deletekeys: true,
    ssh_keys: {
      [`${kind}_private`]: hostKey.endsWith('\n') ? hostKey : `${hostKey}\n`,
      [`${kind}_public`]: publicKey,
    },
    ssh_authorized_keys: authorizedKeys.map((key) => key.trim()),
  };
  // cloud-init reads YAML, of which JSON is a part: nothing has to be indented or quoted by hand.
  return `#cloud-config\n${JSON.stringify(config, null, 2)}\n`;
}

function readHostKey(hostKey: string): { kind: string; publicKey: string } {
  const parsed = ssh2.utils.parseKey(hostKey);
  // The parser's own words could quote the key.
  if (parsed instanceof Error || !parsed.isPrivateKey())
    throw invalidInput('lease.host_key', 'The host key is no private key in the form of OpenSSH.');
  const kind = KIND[parsed.type];
  if (kind === undefined)
    throw invalidInput('lease.host_key', `sshd takes no host key of the kind ${parsed.type}.`);
  return { kind, publicKey: `${parsed.type} ${parsed.getPublicSSH().toString('base64')}` };
}
