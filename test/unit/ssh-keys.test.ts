import { chmod, symlink } from 'node:fs/promises';
import path from 'node:path';
import * as fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import {
  checkKeyFile,
  createKeyPair,
  fingerprint,
  publicKeyOf,
  readPin,
} from '../../src/runtimes/ssh/keys.ts';
import { quoteCommand } from '../../src/runtimes/ssh/quote.ts';
import { runProgram } from '../simulators/machines/network.ts';
import { temporaryFile } from '../support/ssh-machine.ts';

describe('the key file', () => {
  test('a private key that nobody else may read is taken, with its public half', async () => {
    const pair = createKeyPair();
    await using file = await temporaryFile(pair.privateKey, 0o600);
    expect(await checkKeyFile(file.path)).toEqual(pair);
    // Mounted secrets are links.
    const link = path.join(path.dirname(file.path), 'link');
    await symlink(file.path, link);
    expect(await checkKeyFile(link)).toEqual(pair);
  });

  test.for([0o640, 0o604, 0o620, 0o602])(
    'mode %o is refused with the mend',
    async (mode: number) => {
      await using file = await temporaryFile(createKeyPair().privateKey, 0o600);
      await chmod(file.path, mode);
      await expect(checkKeyFile(file.path)).rejects.toMatchObject({
        kind: 'InvalidInput',
        code: 'ssh.key_file',
        message: `others may read the private key ${file.path} (mode 0${mode.toString(8)}): chmod 600 ${file.path}`,
      });
    },
  );

  test('what is no private key says what it is instead', async () => {
    await using none = await temporaryFile('hello', 0o600);
    await using empty = await temporaryFile('', 0o600);
    await using half = await temporaryFile(createKeyPair().publicKey, 0o600);
    await expect(checkKeyFile(none.path)).rejects.toThrow(/is no private key that can be read/);
    await expect(checkKeyFile(empty.path)).rejects.toThrow(/is no private key that can be read/);
    await expect(checkKeyFile(half.path)).rejects.toThrow(/is the public half of a key/);
    await expect(checkKeyFile(`${none.path}-x`)).rejects.toThrow(
      `there is no private key at ${none.path}-x: make one by ssh-keygen -t ed25519`,
    );
    await expect(checkKeyFile(path.dirname(none.path))).rejects.toThrow(/is no file/);
  });

  test('a passphrase is named, with the way to take it off', async () => {
    await using file = await temporaryFile(createKeyPair().privateKey, 0o600);
    const { code } = await runProgram('ssh-keygen', ['-q', '-p', '-N', 'word', '-f', file.path]);
    expect(code).toBe(0);
    await expect(checkKeyFile(file.path)).rejects.toThrow(
      `take it off by ssh-keygen -p -N '' -f ${file.path}`,
    );
  });

  test.for(['rsa', 'ecdsa', 'ed25519'])('OpenSSH makes and PEM holds %s', async (type) => {
    await using file = await temporaryFile('', 0o600);
    const at = `${file.path}-${type}`;
    const made = await runProgram('ssh-keygen', ['-q', '-t', type, '-N', '', '-f', at]);
    expect(made.code).toBe(0);
    const { publicKey } = await checkKeyFile(at);
    const shown = await runProgram('ssh-keygen', ['-y', '-f', at]);
    expect(shown.stdout.split(' ').slice(0, 2).join(' ').trim()).toBe(publicKey);
    const prints = await runProgram('ssh-keygen', ['-lf', at]);
    expect(readPin(publicKey).fingerprint).toBe(prints.stdout.split(' ')[1]);
  });
});

describe('keys', () => {
  test('OpenSSH reads a pair that was made here, one with a leading zero byte too', async () => {
    const isZero = (line: string) => Buffer.from(line.split(' ')[1] ?? '', 'base64')[19] === 0;
    let pair = createKeyPair();
    // One in 256.
    for (let i = 0; i < 10_000 && !isZero(pair.publicKey); i += 1) pair = createKeyPair();
    expect(isZero(pair.publicKey)).toBe(true);
    for (const each of [pair, createKeyPair()]) {
      await using file = await temporaryFile(each.privateKey, 0o600);
      const { stdout } = await runProgram('ssh-keygen', ['-y', '-f', file.path]);
      expect(stdout.trim()).toBe(each.publicKey);
      expect(publicKeyOf(each.privateKey)).toBe(each.publicKey);
    }
  });

  test('a pin is a line or a fingerprint, and nothing else', () => {
    const { publicKey } = createKeyPair();
    const blob = Buffer.from(publicKey.split(' ')[1] ?? '', 'base64');
    expect(readPin(`${publicKey} comment\n`)).toEqual({
      type: 'ssh-ed25519',
      fingerprint: fingerprint(blob),
    });
    expect(readPin(fingerprint(blob))).toEqual({ type: null, fingerprint: fingerprint(blob) });
    for (const wrong of ['', 'SHA256:short', 'MD5:aa:bb', 'ssh-ed25519 AAAA']) {
      expect(() => readPin(wrong)).toThrow(expect.objectContaining({ code: 'ssh.host_key' }));
    }
  });
});

describe('a command line', () => {
  const word = fc.oneof(
    fc.string({ unit: 'binary', maxLength: 40 }),
    fc.string({
      unit: fc.constantFrom(...Array.from(`'"\\$\`!*?~#&|;<>(){}[]=- \t\n\ra`)),
      maxLength: 20,
    }),
  );
  const words = fc.array(
    word.filter((text) => !text.includes('\0')),
    { maxLength: 8 },
  );

  test('every word reaches a program of a POSIX shell as it is', async () => {
    await fc.assert(
      fc.asyncProperty(words, async (argv) => {
        // As sshd runs it: the whole line is one argument of the user's shell.
        const line = quoteCommand(['sh', '-c', String.raw`printf '%s\0' "$@"`, 'sh', ...argv]);
        const { stdout } = await runProgram('/bin/sh', ['-c', line]);
        expect(stdout.split('\0').slice(0, -1)).toEqual(argv.length === 0 ? [''] : argv);
      }),
      { numRuns: 150 },
    );
  });

  test('a first word that looks like an assignment is a program', async () => {
    const { code, stderr } = await runProgram('/bin/sh', ['-c', quoteCommand(['A=1', 'true'])]);
    expect(code).toBe(127);
    expect(stderr).toContain('A=1');
  });

  test('what no machine takes is refused before it is sent', () => {
    expect(() => quoteCommand(['a\0b'])).toThrow(/NUL/);
    expect(() => quoteCommand(['a'.repeat(130_000)])).toThrow(/more than the/);
  });
});
