import { createHash, generateKeyPairSync, randomBytes } from 'node:crypto';
import { open } from 'node:fs/promises';
import process from 'node:process';
import ssh2 from 'ssh2';
import type { ParsedKey } from 'ssh2';
import { describeError, errorCode, invalidInput } from '../../domain/errors.ts';
import type { SluiceError } from '../../domain/errors.ts';

/** What may log in, or prove a machine. */
export interface KeyPair {
  /** The private key as text; secret. */
  privateKey: string;
  /** OpenSSH's one-line form, without a comment. */
  publicKey: string;
}

/** Far more than any key has. */
const MOST_KEY_BYTES = 64 * 1024;
const GROUP_AND_OTHERS = 0o077;
const OTHERS = 0o007;

/**
 * Reads a private key and checks it as `ssh` would: nobody else may read the file (`load_identity_file` of OpenSSH checks
 * files of the caller's own only, so that a mounted secret of root's may be used), and it has to be a private key
 * without a passphrase. Throws `InvalidInput` `ssh.key_file`, whose message says how to mend it.
 */
export async function checkKeyFile(path: string): Promise<KeyPair> {
  const text = await readKeyFile(path);
  const key = ssh2.utils.parseKey(text);
  if (key instanceof Error) throw unreadableKey(path, text, key);
  if (!key.isPrivateKey()) throw publicHalf(path);
  return { privateKey: text, publicKey: publicLine(key) };
}

async function readKeyFile(path: string): Promise<string> {
  try {
    await using file = await open(path);
    const stats = await file.stat();
    const { mode, size, uid } = stats;
    if (!stats.isFile()) throw keyError(`${path} is no file: name the private key itself`);
    if (size > MOST_KEY_BYTES) throw keyError(`${path} is no private key: it has ${size} bytes`);
    const isOwn = uid === process.getuid?.();
    if ((mode & (isOwn ? GROUP_AND_OTHERS : OTHERS)) !== 0) {
      const shown = (mode & 0o777).toString(8).padStart(4, '0');
      throw keyError(`others may read the private key ${path} (mode ${shown}): chmod 600 ${path}`);
    }
    return await file.readFile('utf8');
  } catch (error) {
    const code = errorCode(error);
    if (code === 'ENOENT') {
      throw keyError(
        `there is no private key at ${path}: make one by ssh-keygen -t ed25519 -N '' -f ${path}`,
      );
    }
    if (code !== 'EACCES') throw error;
    throw keyError(`this process may not read the private key ${path}: chown it to its user`);
  }
}

function unreadableKey(path: string, text: string, error: Error): SluiceError {
  if (/passphrase/.test(error.message)) {
    return keyError(
      `the private key ${path} has a passphrase, and nobody is there to type it: take it off by ` +
        `ssh-keygen -p -N '' -f ${path}, or use a key of its own`,
    );
  }
  if (/^(ssh|ecdsa|sk)-/.test(text) || text.includes('PUBLIC KEY')) return publicHalf(path);
  return keyError(
    `${path} is no private key that can be read (${describeError(error)}): it has to begin with ` +
      `-----BEGIN OPENSSH PRIVATE KEY----- or be in PEM form`,
  );
}

function publicHalf(path: string): SluiceError {
  return keyError(
    `${path} is the public half of a key: name the private one, which has no .pub at its end`,
  );
}

function keyError(message: string): SluiceError {
  return invalidInput('ssh.key_file', message);
}

const ED25519 = 'ssh-ed25519';
const BLOCK_BYTES = 8;

/** RFC 4251: a length and that many bytes. */
function field(bytes: Buffer | string): Buffer {
  const content = Buffer.from(bytes);
  return Buffer.concat([uint32(content.length), content]);
}

function uint32(value: number): Buffer {
  const bytes = Buffer.alloc(4);
  bytes.writeUInt32BE(value);
  return bytes;
}

/**
 * A fresh Ed25519 pair in OpenSSH's form (PROTOCOL.key), such as a machine is to prove itself with. Not by
 * `generateKeyPairSync` of ssh2 1.17.0: that drops leading zero bytes of the public key, so that one in 256 of its pairs
 * can be read by nobody.
 */
export function createKeyPair(): KeyPair {
  const { privateKey } = generateKeyPairSync('ed25519');
  const { x = '', d = '' } = privateKey.export({ format: 'jwk' });
  const [point, seed] = [Buffer.from(x, 'base64url'), Buffer.from(d, 'base64url')];
  const blob = Buffer.concat([field(ED25519), field(point)]);
  const check = randomBytes(4);
  const both = field(Buffer.concat([seed, point]));
  const secret = Buffer.concat([check, check, blob, both, field('')]);
  const padding = (BLOCK_BYTES - (secret.length % BLOCK_BYTES)) % BLOCK_BYTES;
  const padded = Buffer.concat([secret, Buffer.from([1, 2, 3, 4, 5, 6, 7].slice(0, padding))]);
  const head = Buffer.concat([Buffer.from('openssh-key-v1\0'), field('none'), field('none')]);
  const file = Buffer.concat([head, field(''), uint32(1), field(blob), field(padded)]);
  const lines = file.toString('base64').match(/.{1,70}/g) ?? [];
  const label = 'OPENSSH PRIVATE KEY';
  return {
    privateKey: `-----BEGIN ${label}-----\n${lines.join('\n')}\n-----END ${label}-----\n`,
    publicKey: `${ED25519} ${blob.toString('base64')}`,
  };
}

/** The one line of the public half of a private key. Throws `InvalidInput` `ssh.key` for anything else. */
export function publicKeyOf(privateKey: string): string {
  const key = ssh2.utils.parseKey(privateKey);
  if (key instanceof Error) throw invalidInput('ssh.key', `no private key: ${key.message}`);
  return publicLine(key);
}

function publicLine(key: ParsedKey): string {
  return `${key.type} ${key.getPublicSSH().toString('base64')}`;
}

/** The one-line form of a host key as it comes over the wire, which begins with the name of its type. */
export function hostKeyLine(blob: Buffer): string {
  const length = blob.readUInt32BE(0);
  return `${blob.toString('latin1', 4, 4 + length)} ${blob.toString('base64')}`;
}

/** As `ssh-keygen -lf` shows it. */
export function fingerprint(blob: Buffer): string {
  return `SHA256:${createHash('sha256').update(blob).digest('base64').replace(/=+$/, '')}`;
}

/** A host key that a machine may have. */
export interface Pin {
  fingerprint: string;
  /** Null where only the fingerprint is known. */
  type: string | null;
}

/** Reads a host key in one-line form, or its `SHA256:…` fingerprint. Throws `InvalidInput` `ssh.host_key`. */
export function readPin(text: string): Pin {
  const [first = '', second = ''] = text.trim().split(/\s+/);
  if (/^SHA256:[A-Za-z0-9+/]{43}=*$/.test(first)) {
    return { fingerprint: first.replace(/=+$/, ''), type: null };
  }
  const key = ssh2.utils.parseKey(`${first} ${second}`);
  if (key instanceof Error) {
    throw invalidInput(
      'ssh.host_key',
      `'${first.slice(0, 40)}' begins no host key: ${key.message}`,
    );
  }
  return { fingerprint: fingerprint(key.getPublicSSH()), type: key.type };
}
