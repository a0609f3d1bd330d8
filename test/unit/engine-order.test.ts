import { expect, test } from 'vitest';
import { engineKey } from '../../src/runtimes/engine-key.ts';
import { composeStart } from '../../src/runtimes/ssh/engine-order.ts';
import type { EngineParts } from '../../src/runtimes/ssh/engine-order.ts';
import { createKeyPair } from '../../src/runtimes/ssh/keys.ts';
import { makeSpec } from '../support/template-spec.ts';
import type { Changes } from '../support/template-spec.ts';

const PARTS: EngineParts = {
  engineForm: (provider) => (provider === 'lambdaCloud' ? 'docker' : 'process'),
  modelCachePath: () => null,
  secret: async (name) =>
    name === 'bucket' ? { access_key: 'id', secret_key: 'secret', more: 'x' } : null,
  objectStore: (type) =>
    type === 's3' ? { endpoint: 'https://minio.example:9000', region: 'eu-1' } : null,
};

const order = (changes: Changes = {}) => ({ spec: makeSpec(changes), servingName: 'qwen' });
const runpod = { provider: 'runpod', apiKey: null } as const;
const lambda = { provider: 'lambdaCloud', apiKey: null } as const;
const weights: Changes = {
  model_source: { type: 's3', uri: 's3://bucket/qwen', auth_secret_ref: 'bucket' },
};

test('a leased container runs the engine as a process that listens to its machine', async () => {
  const start = await composeStart(runpod, order(), PARTS);
  expect(start).toMatchObject({ name: 'sluice-engine', form: { kind: 'process' }, files: [] });
  expect(start.argv.join(' ')).toMatch(
    /^vllm serve Qwen\/Qwen3-8B --host 127\.0\.0\.1 --port 8000/,
  );
  expect(start.env['HF_HOME']).toBeUndefined();
});

test('a leased host runs it in a container, and keeps weights where the next container finds them', async () => {
  const start = await composeStart(lambda, order(), PARTS);
  expect(start.form).toEqual({
    kind: 'docker',
    image: 'vllm/vllm-openai:v0.32.0',
    entrypoint: 'vllm',
    gpus: 'all',
    shmSize: '16g',
    port: 8000,
    volumes: [{ from: '/opt/sluice/cache', to: '/opt/sluice/cache' }],
    shared: [],
  });
  // Within the container; its port is published on the loopback of the machine.
  expect(start.argv.join(' ')).toMatch(/^serve Qwen\/Qwen3-8B --host 0\.0\.0\.0/);
  expect(start.env['HF_HOME']).toBe('/opt/sluice/cache');
});

test('the cache of the settings is where weights are kept, in both forms', async () => {
  const parts: EngineParts = { ...PARTS, modelCachePath: () => '/workspace' };
  const own = await composeStart(runpod, order(), parts);
  expect(own.env['HF_HOME']).toBe('/workspace');
  const docker = await composeStart(lambda, order(), parts);
  expect(docker.form).toMatchObject({ volumes: [{ from: '/workspace', to: '/workspace' }] });
});

test('credentials of object storage are in the environment, and in no argument', async () => {
  const start = await composeStart(runpod, order(weights), PARTS);
  expect(start.env).toMatchObject({
    AWS_ACCESS_KEY_ID: 'id',
    AWS_SECRET_ACCESS_KEY: 'secret',
    AWS_ENDPOINT_URL: 'https://minio.example:9000',
    AWS_DEFAULT_REGION: 'eu-1',
  });
  expect(Object.values(start.env)).not.toContain('x');
  expect(JSON.stringify([start.argv, start.form])).not.toContain('secret');
});

test.for([
  ['there is none of that name', null],
  ['an entry is missing', { access_key: 'id' }],
  ['an entry is empty', { access_key: 'id', secret_key: '' }],
] as const)('a secret is refused where %s', async ([, found]) => {
  const parts: EngineParts = { ...PARTS, secret: async () => found };
  await expect(composeStart(runpod, order(weights), parts)).rejects.toMatchObject({
    kind: 'InvalidInput',
    code: 'engine.secret_missing',
    param: 'model_source.auth_secret_ref',
  });
});

test('only what the world can reach has a key, which is another for each lease', async () => {
  const [deployment, one, other] = [createKeyPair(), createKeyPair(), createKeyPair()];
  const key = engineKey(deployment.privateKey, one.publicKey);
  expect(key).toMatch(/^[\w-]{43}$/);
  expect(engineKey(`${deployment.privateKey}\n`, `${one.publicKey}\n`)).toBe(key);
  expect(engineKey(deployment.privateKey, other.publicKey)).not.toBe(key);
  expect(engineKey(createKeyPair().privateKey, one.publicKey)).not.toBe(key);
  const open = await composeStart({ provider: 'runpod', apiKey: key }, order(), PARTS);
  expect(open.env['VLLM_API_KEY']).toBe(key);
  expect(open.argv).toContain('0.0.0.0');
  const closed = await composeStart(runpod, order(), PARTS);
  expect(closed.env['VLLM_API_KEY']).toBeUndefined();
});
