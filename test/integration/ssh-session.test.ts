import { createServer } from 'node:net';
import type { AddressInfo, Socket } from 'node:net';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { exec } from '../../src/runtimes/ssh/exec.ts';
import { createKeyPair, readPin } from '../../src/runtimes/ssh/keys.ts';
import { openSession } from '../../src/runtimes/ssh/session.ts';
import { startSshMachine } from '../support/ssh-machine.ts';
import type { SshMachine } from '../support/ssh-machine.ts';
import { until } from '../support/until.ts';

/** A port that takes connections and says `greeting`, or nothing. */
async function startMute(greeting = ''): Promise<AsyncDisposable & { port: number }> {
  const sockets = new Set<Socket>();
  const server = createServer((socket) => {
    sockets.add(socket);
    socket.on('error', () => {});
    if (greeting !== '') socket.write(greeting);
  });
  const { promise, resolve } = Promise.withResolvers<undefined>();
  server.listen(0, '127.0.0.1', () => resolve(undefined));
  await promise;
  return {
    port: (server.address() as AddressInfo).port, // a TCP server has no other kind of address
    async [Symbol.asyncDispose]() {
      for (const socket of sockets) socket.destroy();
      server.close();
    },
  };
}

/** What it answers, or how it fails: looked at from the beginning, since that may come before anybody waits. */
async function outcome(asked: Promise<unknown>): Promise<unknown> {
  return asked.catch((error: unknown) => error);
}

let shared: SshMachine;
beforeAll(async () => {
  shared = await startSshMachine();
});
afterAll(async () => shared[Symbol.asyncDispose]());

describe('who is there', () => {
  test('the pinned key, as a line or a fingerprint, lets a session stand', async () => {
    const line = await shared.open();
    expect(line.hostKey).toBe(shared.hostKey.publicKey);
    const pins = [createKeyPair().publicKey, readPin(shared.hostKey.publicKey).fingerprint];
    const print = await shared.open({ hostKeys: pins });
    expect((await exec(print, 'whoami')).stdout).toBe('root\n');
  });

  test('another key is refused for good, and was told nothing', async () => {
    const wrong = shared.open({ hostKeys: [createKeyPair().publicKey] });
    await expect(wrong).rejects.toMatchObject({
      kind: 'Permanent',
      code: 'ssh.host_key_changed',
      message: expect.stringContaining(readPin(shared.hostKey.publicKey).fingerprint),
    });
    const log = shared.machine.log();
    expect(log).not.toContain('Failed publickey');
    // A key of another kind cannot be the pinned one either.
    const rsa = 'ecdsa-sha2-nistp256';
    const blob = 'AAAAE2VjZHNhLXNoYTItbmlzdHAyNTYAAAAIbmlzdHAyNTYAAABB';
    const point =
      'BEmKSENjQEezOmxkZMy7opKgwFB9nkt5YRrYMjNuG5N87uRgg6CLrbo5wAdT/y6v0mKV0U2w0WZ2YB/++Tpockg=';
    await expect(shared.open({ hostKeys: [`${rsa} ${blob}${point}`] })).rejects.toMatchObject({
      kind: 'Permanent',
      code: 'ssh.host_key_changed',
    });
  });

  test('first-seen only where it is said, and then it is told', async () => {
    await expect(shared.open({ hostKeys: [] })).rejects.toMatchObject({ code: 'ssh.host_key' });
    const session = await shared.open({ hostKeys: 'first-seen' });
    expect(session.hostKey).toBe(shared.hostKey.publicKey);
  });

  test('a machine that changed its key is refused from then on', async () => {
    await using machine = await startSshMachine();
    const before = await machine.open();
    await machine.machine.changeHostKey();
    await until(
      async () =>
        machine.open().then(
          (session) => session.close(),
          (error: unknown) => error instanceof Error && /proves itself with/.test(error.message),
        ),
      { what: 'the refusal' },
    );
    expect(before.error).toBeNull();
  });
});

describe('what does not let us in', () => {
  test('a wrong key, a wrong user, a key that is none', async () => {
    const { privateKey } = createKeyPair();
    await expect(shared.open({ privateKey })).rejects.toMatchObject({
      kind: 'Transient',
      code: 'ssh.auth',
      message: expect.stringContaining(`root@${shared.machine.address}:22 does not let us in`),
    });
    await expect(shared.open({ user: 'nobody' })).rejects.toMatchObject({ code: 'ssh.auth' });
    await expect(shared.open({ privateKey: 'nonsense' })).rejects.toMatchObject({
      kind: 'Permanent',
      code: 'ssh.key',
    });
  });

  test('nobody who listens, no way there, and who hangs up', async () => {
    await expect(shared.open({ port: 2222 })).rejects.toMatchObject({
      kind: 'Transient',
      code: 'ssh.refused',
    });
    const nowhere = shared.open({ host: 'no-such-machine.invalid' });
    await expect(nowhere).rejects.toMatchObject({ code: 'ssh.unreachable' });
    await using web = await startMute('HTTP/1.1 400 Bad Request\r\n\r\n');
    const notSsh = shared.open({ host: '127.0.0.1', port: web.port, handshakeMs: 300 });
    await expect(notSsh).rejects.toMatchObject({ kind: 'Transient' });
  });

  test('a server that hangs before its greeting, and a machine that is silent altogether', async () => {
    await using mute = await startMute();
    const hanging = shared.open({ host: '127.0.0.1', port: mute.port, handshakeMs: 200 });
    await expect(hanging).rejects.toMatchObject({
      kind: 'Transient',
      code: 'ssh.unreachable',
      message: expect.stringContaining('took the connection, but let nobody in within 200 ms'),
    });
    await using machine = await startSshMachine();
    await machine.machine.freeze(true);
    await expect(machine.open({ handshakeMs: 200 })).rejects.toMatchObject({
      code: 'ssh.unreachable',
      message: expect.stringContaining('did not answer within 200 ms'),
    });
  });

  test('an attempt ends when its signal says so', async () => {
    await using mute = await startMute();
    const stop = new AbortController();
    const opening = openSession(
      shared.options({ host: '127.0.0.1', port: mute.port, signal: stop.signal }),
    );
    stop.abort(new Error('enough'));
    await expect(opening).rejects.toThrow('enough');
  });
});

describe('a command', () => {
  test('answers its code, its words and its signal', async () => {
    const session = await shared.open();
    expect(await exec(session, 'echo out; echo err >&2; exit 3')).toEqual({
      code: 3,
      stdout: 'out\n',
      stderr: 'err\n',
      truncated: false,
    });
    expect(await exec(session, 'kill -KILL $$')).toMatchObject({ code: 137 });
    const secret = "it's $HOME\n".repeat(30_000);
    expect((await exec(session, 'wc -c', { stdin: secret })).stdout.trim()).toBe(
      String(secret.length),
    );
  });

  test('may say more than anybody keeps', async () => {
    const session = await shared.open();
    const done = await exec(session, 'yes | head -c 20000000; yes no | head -c 9000000 >&2', {
      maxBytes: 1000,
    });
    expect(done).toMatchObject({ code: 0, truncated: true });
    expect([done.stdout.length, done.stderr.length]).toEqual([1000, 1000]);
  });

  test('has a time limit, is killed then, and leaves room for others', async () => {
    const session = await shared.open();
    const slow = Array.from({ length: 12 }, async () =>
      exec(session, 'exec sleep 61', { timeoutMs: 400 }),
    );
    const ended = await Promise.allSettled(slow);
    expect(ended.map((one) => (one.status === 'rejected' ? one.reason.code : 'answered'))).toEqual(
      Array.from({ length: 12 }, () => 'ssh.exec_timeout'),
    );
    expect((await exec(session, 'echo again')).stdout).toBe('again\n');
    const alive = async () => (await shared.machine.exec('pgrep -f "^sleep 61"')).stdout.trim();
    await until(async () => (await alive()) === '', { what: 'the end of the sleepers' });
  });

  test('waits for its turn where a machine gives few sessions', async () => {
    await using narrow = await startSshMachine('container', { sshd: '-o MaxSessions=2' });
    for (const session of [await shared.open(), await narrow.open()]) {
      const many = Array.from({ length: 30 }, async (_, i) =>
        exec(session, `sleep 0.05; echo ${i}`),
      );
      const said = await Promise.all(many);
      expect(said.map(({ stdout }) => Number(stdout))).toEqual(said.map((_, i) => i));
    }
  });

  test('ends with its connection, and so does what comes after', async () => {
    await using machine = await startSshMachine();
    const session = await machine.open();
    const running = outcome(exec(session, 'echo $$ >/tmp/began; sleep 60'));
    await until(async () => (await machine.machine.exec('test -s /tmp/began')).code === 0);
    await machine.machine.cutSsh();
    expect(await running).toMatchObject({ kind: 'Transient', code: 'ssh.cut' });
    expect((await session.ended).code).toBe('ssh.cut');
    await expect(exec(session, 'true')).rejects.toMatchObject({ code: 'ssh.cut' });
  });

  test('a machine that falls silent is noticed, one that is busy sending is not', async () => {
    await using machine = await startSshMachine();
    const session = await machine.open({ keepaliveMs: 100 });
    expect((await exec(session, 'sleep 1; echo alive')).stdout).toBe('alive\n');
    await machine.machine.freeze(true);
    const asked = performance.now();
    await expect(exec(session, 'true')).rejects.toMatchObject({
      code: 'ssh.cut',
      message: expect.stringMatching(/no byte came for \d+ ms/),
    });
    expect(performance.now() - asked).toBeLessThan(5_000);
  });

  test('a session that is closed ends what runs', async () => {
    const session = await shared.open();
    const running = outcome(exec(session, 'sleep 60'));
    session.close();
    session.close();
    expect(await running).toMatchObject({ code: 'ssh.cut' });
  });
});
