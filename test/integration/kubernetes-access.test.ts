import { chmod, mkdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { openAccess } from '../../src/resources/kubernetes/access.ts';
import { makeFolder } from '../support/server.ts';
import type { TestFolder } from '../support/server.ts';

let folder: TestFolder;
beforeAll(async () => (folder = await makeFolder()));
afterAll(async () => folder[Symbol.asyncDispose]());

const CA = Buffer.from('-----BEGIN CERTIFICATE-----').toString('base64');

/** A kubeconfig with one user, in a context called `one`. */
async function write(name: string, user: object, more: object = {}): Promise<string> {
  const path = join(folder.path, name);
  const config = {
    'current-context': 'one',
    clusters: [
      { name: 'c', cluster: { server: 'https://k:6443/', 'certificate-authority-data': CA } },
    ],
    users: [{ name: 'u', user }],
    contexts: [
      { name: 'one', context: { cluster: 'c', user: 'u', namespace: 'batch' } },
      { name: 'two', context: { cluster: 'c', user: 'u' } },
    ],
    ...more,
  };
  await writeFile(path, JSON.stringify(config)); // JSON is YAML
  return path;
}

describe('a kubeconfig (KUBECONFIG)', () => {
  test('server, authority, namespace and token', async () => {
    const path = await write('token', { token: 'abc' });
    const access = await openAccess({ kubeconfig: path, inCluster: null });
    expect(access).toMatchObject({
      server: 'https://k:6443',
      namespace: 'batch',
      isInCluster: false,
      tls: { ca: '-----BEGIN CERTIFICATE-----' },
    });
    expect(await access.authorization()).toBe('Bearer abc');
  });

  test('another context (KUBERNETES_CONTEXT)', async () => {
    const path = await write('context', { token: 'abc' });
    const access = await openAccess({ kubeconfig: path, context: 'two', inCluster: null });
    expect(access.namespace).toBeNull();
    expect(access.source).toContain('context two of');
  });

  test('several files with colons between', async () => {
    const path = await write('second', { token: 'abc' });
    const kubeconfig = `${join(folder.path, 'none')}:${path}`;
    const access = await openAccess({ kubeconfig, inCluster: null });
    expect(access.server).toBe('https://k:6443');
  });

  test('a client certificate in place of a token', async () => {
    const data = Buffer.from('pem').toString('base64');
    const user = { 'client-certificate-data': data, 'client-key-data': data };
    const path = await write('certificate', user);
    const access = await openAccess({ kubeconfig: path, inCluster: null });
    expect(access.tls).toMatchObject({ cert: 'pem', key: 'pem' });
    expect(await access.authorization()).toBeNull();
  });

  test('a program that prints a credential is asked again before that expires', async () => {
    const program = join(folder.path, 'credential.sh');
    const counter = join(folder.path, 'count');
    await writeFile(
      program,
      `#!/bin/sh\necho x >> "${counter}"\nn=$(wc -l < "${counter}" | tr -d ' ')\n` +
        'echo "{\\"status\\":{\\"token\\":\\"$GREETING-$n\\",\\"expirationTimestamp\\":\\"2020-01-01T00:00:00Z\\"}}"\n',
    );
    await chmod(program, 0o700);
    const exec = { command: './credential.sh', env: [{ name: 'GREETING', value: 'hello' }] };
    const path = await write('exec', { exec });
    const access = await openAccess({ kubeconfig: path, inCluster: null });
    expect(await access.authorization()).toBe('Bearer hello-1');
    expect(await access.authorization()).toBe('Bearer hello-2');
  });

  test('a program that fails is told', async () => {
    const path = await write('fails', { exec: { command: 'false' } });
    const access = await openAccess({ kubeconfig: path, inCluster: null });
    await expect(access.authorization()).rejects.toThrow('The program false of the kubeconfig');
  });

  test.for<[name: string, more: object, context: string | undefined, said: string]>([
    ['no-context', { 'current-context': '' }, undefined, 'has no current-context'],
    ['other-context', {}, 'three', "has no context 'three', but one, two: mend KUBERNETES_CONTEXT"],
    ['no-cluster', { clusters: [] }, undefined, "has no cluster 'c'"],
    ['no-user', { users: [] }, undefined, "has no user 'u'"],
    ['wrong', { clusters: [{ name: 'c' }] }, undefined, 'is not as it should be'],
  ])('%s says what is missing', async ([name, more, context, said]) => {
    const path = await write(name, { token: 'abc' }, more);
    await expect(openAccess({ kubeconfig: path, context, inCluster: null })).rejects.toMatchObject({
      code: 'kubernetes.credentials',
      message: expect.stringContaining(said),
    });
  });

  test('none at all names the mend, one that is no YAML shows none of it', async () => {
    const none = join(folder.path, 'nowhere');
    const refused = openAccess({ kubeconfig: none, inCluster: null });
    await expect(refused).rejects.toThrow(
      `there is no kubeconfig at ${none}: name one in KUBECONFIG`,
    );
    const broken = join(folder.path, 'broken');
    await writeFile(broken, 'token: "secret\n: :');
    const error = await openAccess({ kubeconfig: broken, inCluster: null }).catch(
      (e: unknown) => e,
    );
    expect(String(error)).toContain('is no YAML');
    expect(String(error)).not.toContain('secret');
  });
});

describe('the service account of a pod', () => {
  test('host, authority, namespace and token; a kubeconfig that is named goes first', async () => {
    const serviceAccount = join(folder.path, 'account');
    await mkdir(serviceAccount);
    await writeFile(join(serviceAccount, 'ca.crt'), 'pem');
    await writeFile(join(serviceAccount, 'namespace'), 'team\n');
    await writeFile(join(serviceAccount, 'token'), 'pod-token\n');
    const inCluster = { host: 'fd00::1', port: '443' };
    const access = await openAccess({ serviceAccount, inCluster });
    expect(access).toMatchObject({
      server: 'https://[fd00::1]:443',
      namespace: 'team',
      isInCluster: true,
      tls: { ca: 'pem' },
    });
    expect(await access.authorization()).toBe('Bearer pod-token');
    const kubeconfig = await write('first', { token: 'abc' });
    const other = await openAccess({ serviceAccount, inCluster, kubeconfig });
    expect(other.isInCluster).toBe(false);
  });

  test('a pod without one is told where it was looked for', async () => {
    const serviceAccount = join(folder.path, 'no-account');
    const refused = openAccess({ serviceAccount, inCluster: { host: 'k', port: '443' } });
    await expect(refused).rejects.toThrow(serviceAccount);
  });
});
