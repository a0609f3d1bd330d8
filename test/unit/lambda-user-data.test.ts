import { generateKeyPairSync } from 'node:crypto';
import { expect, test } from 'vitest';
import { userData } from '../../src/resources/lambda-cloud/user-data.ts';
import { parseUserData } from '../simulators/machines/cloud-init.ts';
import { createKeyPair } from '../simulators/machines/ssh-client.ts';

test('gives sshd one host key, lets keys in, and starts nothing', async () => {
  const { privateKey, publicKey } = await createKeyPair();
  const text = userData(privateKey, ['ssh-ed25519 AAAA me\n', 'ssh-rsa BBBB "quoted": #you']);
  expect(text).toMatch(/^#cloud-config\n/);
  expect(parseUserData(text)).toEqual({
    hostKeys: {
      ssh_host_ed25519_key: privateKey,
      'ssh_host_ed25519_key.pub': `${publicKey.split(' ').slice(0, 2).join(' ')}\n`,
    },
    authorizedKeys: ['ssh-ed25519 AAAA me', 'ssh-rsa BBBB "quoted": #you'],
    files: [],
    commands: [],
    script: undefined,
    error: undefined,
  });
  expect(text).toContain('"ssh_deletekeys": true');
});

test('a key of RSA is called so', () => {
  const { privateKey } = generateKeyPairSync('rsa', {
    modulusLength: 2048,
    publicKeyEncoding: { type: 'spki', format: 'pem' },
    privateKeyEncoding: { type: 'pkcs1', format: 'pem' },
  });
  const { hostKeys } = parseUserData(userData(privateKey, []));
  expect(Object.keys(hostKeys)).toEqual(['ssh_host_rsa_key', 'ssh_host_rsa_key.pub']);
});

test('what is no private key is refused, and not quoted', async () => {
  const { publicKey } = await createKeyPair();
  for (const key of ['', 'secret', publicKey, '-----BEGIN OPENSSH PRIVATE KEY-----\nc2VjcmV0\n']) {
    let message = '';
    try {
      userData(key, []);
    } catch (error) {
      message = String(error);
    }
    expect(message).toContain('The host key is no private key');
    expect(message).not.toContain('secret');
  }
});
