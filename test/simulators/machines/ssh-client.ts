import { spawn } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:net';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { runProgram } from './network.ts';

/** Where and as whom; `hostKey` is the one public key that the machine may have. */
export interface SshTarget {
  host: string;
  port?: number;
  user: string;
  hostKey?: string;
  /** Of connecting, in seconds. */
  patience?: number;
}

export interface SshAnswer {
  code: number | null;
  stdout: string;
  stderr: string;
}

export interface Forwarded extends AsyncDisposable {
  url: string;
}

/** OpenSSH's own client with a key of its own: the witness that a machine is what ssh says it is. */
export interface SshClient extends Disposable {
  publicKey: string;
  /** The private key's file. */
  keyFile: string;
  run(target: SshTarget, command: string, input?: string): Promise<SshAnswer>;
  /** Forwards a free local port to `127.0.0.1:port` of the machine; resolves when it listens. */
  forward(target: SshTarget, port: number): Promise<Forwarded>;
}

async function freePort(): Promise<number> {
  const server = createServer();
  const { promise, resolve } = Promise.withResolvers<undefined>();
  server.listen(0, '127.0.0.1', () => resolve(undefined));
  await promise;
  const { port } = server.address() as AddressInfo; // a TCP server has no other kind of address
  const closed = Promise.withResolvers<undefined>();
  server.close(() => closed.resolve(undefined));
  await closed.promise;
  return port;
}

/** A fresh pair: OpenSSH's private form and one line of the public one. */
export async function createKeyPair(): Promise<{ privateKey: string; publicKey: string }> {
  const folder = mkdtempSync(path.join(tmpdir(), 'sluice-key-'));
  try {
    const file = path.join(folder, 'key');
    const { code, stderr } = await runProgram('ssh-keygen', [
      '-q',
      '-t',
      'ed25519',
      '-N',
      '',
      '-C',
      'test',
      '-f',
      file,
    ]);
    if (code !== 0) throw new Error(stderr);
    const read = (name: string): string => readFileSync(name, 'utf8');
    return { privateKey: read(file), publicKey: read(`${file}.pub`).trim() };
  } finally {
    rmSync(folder, { recursive: true });
  }
}

/** Makes a key pair and a client that uses it. */
export async function createSshClient(): Promise<SshClient> {
  const folder = mkdtempSync(path.join(tmpdir(), 'sluice-ssh-'));
  const { privateKey, publicKey } = await createKeyPair();
  const keyFile = path.join(folder, 'key');
  writeFileSync(keyFile, privateKey, { mode: 0o600 });
  let files = 0;

  function argsFor({ host, port = 22, user, hostKey, patience = 5 }: SshTarget): string[] {
    files += 1;
    const known = path.join(folder, `known-${files}`);
    const where = port === 22 ? host : `[${host}]:${port}`;
    writeFileSync(known, hostKey === undefined ? '' : `${where} ${hostKey}\n`);
    const options = [
      'BatchMode=yes',
      'LogLevel=ERROR',
      `ConnectTimeout=${patience}`,
      'IdentitiesOnly=yes',
      `UserKnownHostsFile=${known}`,
      `StrictHostKeyChecking=${hostKey === undefined ? 'no' : 'yes'}`,
      ...(hostKey === undefined ? [] : [`HostKeyAlgorithms=${hostKey.split(' ')[0] ?? ''}`]),
    ];
    return [
      '-F',
      'none',
      '-i',
      keyFile,
      ...options.flatMap((one) => ['-o', one]),
      '-p',
      String(port),
      `${user}@${host}`,
    ];
  }

  return {
    publicKey,
    keyFile,
    run: async (target, command, input = '') =>
      runProgram('ssh', [...argsFor(target), command], input),
    async forward(target, remote) {
      const port = await freePort();
      const tunnel = `127.0.0.1:${port}:127.0.0.1:${remote}`;
      const child = spawn(
        'ssh',
        ['-N', '-o', 'ExitOnForwardFailure=yes', '-L', tunnel, '-v', ...argsFor(target)],
        {
          stdio: ['ignore', 'ignore', 'pipe'],
        },
      );
      const ended = Promise.withResolvers<undefined>();
      child.once('close', () => ended.resolve(undefined));
      const listening = Promise.withResolvers<undefined>();
      let said = '';
      child.stderr.setEncoding('utf8').on('data', (text: string) => {
        said += text;
        if (said.includes('Entering interactive session')) listening.resolve(undefined);
      });
      child.once('close', () => listening.reject(new Error(`ssh ended: ${said}`)));
      await listening.promise;
      return {
        url: `http://127.0.0.1:${port}`,
        async [Symbol.asyncDispose]() {
          child.kill('SIGKILL');
          await ended.promise;
        },
      };
    },
    [Symbol.dispose]: () => rmSync(folder, { recursive: true }),
  };
}
