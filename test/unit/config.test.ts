import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, expect, onTestFinished, test } from 'vitest';
import { loadSettings, readEnvironment } from '../../config/load.ts';
import { SETTINGS } from '../../config/schema.ts';
import type { SettingName } from '../../config/schema.ts';
import { SluiceError } from '../../src/domain/errors.ts';

/** The refusal of an environment; throws when it is not refused. */
function refusal(environment: Record<string, string>): SluiceError {
  try {
    loadSettings(environment);
  } catch (error) {
    if (error instanceof SluiceError) return error;
    throw error;
  }
  throw new Error(`${JSON.stringify(environment)} should have been refused`);
}

/** Values that each setting refuses, and a word of what it says is allowed; null: it takes any text. */
const BAD: Record<SettingName, { values: string[]; allowed: string } | null> = {
  httpAddr: {
    values: ['8080', 'localhost', '127.0.0.1:70000', '::1:80', 'host:', '[::1]'],
    allowed: 'host:port',
  },
  dataDir: null,
  redisUrl: {
    values: [
      'localhost:6379',
      'http://localhost',
      'redis://',
      'redis+unix://relative',
      'redis:// x',
    ],
    allowed: 'redis://',
  },
  storeUri: { values: ['sqlite:///x', 'postgres://db/x', '/tmp/x'], allowed: 'redis://' },
  redisFsync: { values: ['no', 'ALWAYS'], allowed: 'always, everysec' },
  roles: { values: ['api,wrker', 'all', 'api,,worker'], allowed: 'api, worker, sweeper' },
  queues: { values: ['planing', 'planning;dispatch'], allowed: 'planning, provisioning' },
  workerProcesses: { values: ['-1', '257', 'auto', '1.5'], allowed: 'from 0 to 256' },
  logLevel: { values: ['verbose', '3'], allowed: 'trace, debug' },
  provisioners: {
    values: ['slurm', 'Static', 'static,runpod', 'runpod;lambdaCloud', 'lambdacloud'],
    allowed: 'one of static, runpod, lambdaCloud',
  },
  sshKeyFile: null,
  runpodApiKey: { values: ['two words'], allowed: 'printable ASCII' },
  runpodSshPublicKey: {
    values: ['~/.ssh/id.pub', '-----BEGIN OPENSSH PRIVATE KEY-----', 'ssh-ed25519'],
    allowed: 'a public key in one line',
  },
  runpodBaseUrl: { values: ['api.runpod.io', 'https://u:p@h/v2', 'https://h/?x'], allowed: 'URL' },
  runpodApiVersion: { values: ['2', 'v3'], allowed: 'v1, v2' },
  runpodDataCenters: { values: ['EU RO 1', 'EU_RO'], allowed: 'comma-separated list of ids' },
  runpodImage: { values: ['vllm openai'], allowed: 'without spaces' },
  runpodCloudType: { values: ['secure', 'SPOT'], allowed: 'SECURE, COMMUNITY' },
  runpodNetworkVolume: { values: ['my volume'], allowed: 'without spaces' },
  lambdaCloudApiKey: { values: ['two words'], allowed: 'printable ASCII' },
  lambdaCloudSshKeys: { values: ['n'.repeat(65)], allowed: 'at most 64 characters' },
  lambdaCloudBaseUrl: { values: ['cloud.lambda.ai', 'ftp://host'], allowed: 'URL' },
  lambdaCloudRegions: { values: ['us west', 'us_west_1'], allowed: 'comma-separated list of ids' },
  lambdaCloudFileSystem: { values: ['my files'], allowed: 'without spaces' },
  defaultTemplate: null,
  kubeconfig: null,
  kubernetesContext: null,
  kubernetesNamespaces: { values: ['Batch', 'a_b', '-a', 'a.b'], allowed: 'list of namespaces' },
  kubernetesRuntime: { values: ['Job', 'pod'], allowed: 'deployment, job' },
  kubernetesJobTemplate: null,
  kubernetesWorkerImage: { values: ['a b'], allowed: 'without spaces' },
  kubernetesQueue: { values: ['A', 'a b'], allowed: 'LocalQueue' },
  kubernetesAccess: { values: ['forward', 'Proxy'], allowed: 'auto, service, proxy' },
  kubernetesGpuResource: { values: ['a b', '/gpu', 'nvidia.com/'], allowed: 'nvidia.com/gpu' },
  kubernetesGpuLabel: { values: ['a b', '/gpu', 'nvidia.com/'], allowed: 'nvidia.com/gpu' },
  kubernetesAutoscaled: { values: ['yes', '1'], allowed: 'true, false' },
  kubernetesPendingWait: { values: ['3', '10ms'], allowed: '500ms, 10s, 15m or 2h' },
  kubernetesModelCache: { values: ['Models', 'a b'], allowed: 'PersistentVolumeClaim' },
  planningPolicy: { values: ['dearest', 'Simple'], allowed: 'simple, cheapest, fastest' },
  plannerWorkerCount: { values: ['0', '1001', 'many'], allowed: 'from 1 to 1000' },
  capacityWait: { values: ['15', 'ever'], allowed: '500ms, 10s, 15m or 2h' },
  maxLeases: { values: ['0', '10001'], allowed: 'from 1 to 10000' },
  keepWarmSeconds: { values: ['-1', '86401', '10m'], allowed: 'from 0 to 86400' },
  maxCostUsd: { values: ['0', '$5', '1e3', '1000001'], allowed: 'from 0.01 to 1000000' },
  pauseRelease: { values: ['-1', '86401', '10m'], allowed: 'from 0 to 86400' },
  maxIdleMinutes: { values: ['0', '1.5', '10m'], allowed: 'from 1 to 525600' },
  engineUrls: {
    values: ['localhost:8000', 'ftp://host', 'http://a,b', 'http://host/?key=1', 'http://u:p@host'],
    allowed: 'http(s) URLs',
  },
  metadataServiceUrl: {
    values: ['localhost:8090', 'ftp://host', 'http://host/?key=1', 'http://u:p@host'],
    allowed: 'http(s) URL',
  },
  metadataServiceApiKey: { values: ['two words', 'schlüssel'], allowed: 'printable ASCII' },
  engineWeights: { values: ['0', '-1', 'many', '1001'], allowed: 'from 0.01 to 1000' },
  engineRequestsPerSecond: { values: ['0', '-1', 'many', '1e3'], allowed: 'from 0.001 to' },
  engineTokensPerMinute: { values: ['0', '1000000001', '1k'], allowed: 'from 0.001 to' },
  keyRequestsPerSecond: { values: ['0', '0.0001', '.5'], allowed: 'from 0.001 to' },
  keyTokensPerMinute: { values: ['0', '10/m', '1,5'], allowed: 'from 0.001 to' },
  engineApiKey: { values: ['two words', 'schlüssel'], allowed: 'printable ASCII' },
  runpodProxy: {
    values: ['yes', 'https://proxy.example', 'https://{pod}.example', '{pod}-{port}'],
    allowed: 'false, true or a URL',
  },
  engineSecretsDir: { values: ['secrets', './secrets'], allowed: '/etc/sluice/secrets' },
  storageType: { values: ['FTP', 'redis'], allowed: 'AUTO, LOCAL, S3, TOS' },
  s3Bucket: { values: ['s3://bucket', 'ab', 'Bucket', 'a..b'], allowed: '3 to 63 characters' },
  s3Endpoint: {
    values: ['https://host/path', 'ftp://host', 'https://u:p@host', 'https://host?x'],
    allowed: 'the URL of the store alone',
  },
  s3Region: { values: ['us west', 'https://host'], allowed: 'such as us-west-2' },
  s3PathStyle: { values: ['yes', 'TRUE'], allowed: 'auto, true, false' },
  s3Prefix: { values: ['/a', 'a//b', '../a', 'a b', 'a/./b'], allowed: 'a path of names' },
  s3PartSize: { values: ['4MiB', '2GiB', 'large'], allowed: 'MiB' },
  awsAccessKeyId: { values: ['two words'], allowed: 'without spaces' },
  awsSecretAccessKey: { values: ['two words'], allowed: 'without spaces' },
  awsSessionToken: { values: ['two words'], allowed: 'without spaces' },
  tosBucket: { values: ['tos://bucket', 'AB'], allowed: '3 to 63 characters' },
  tosEndpoint: { values: ['https://host/path'], allowed: 'the URL of the store alone' },
  tosRegion: { values: ['cn beijing'], allowed: 'such as us-west-2' },
  tosPrefix: { values: ['/a', '..'], allowed: 'a path of names' },
  tosAccessKey: { values: ['two words'], allowed: 'without spaces' },
  tosSecretKey: { values: ['two words'], allowed: 'without spaces' },
  maxFileBytes: {
    values: ['0', '-1', '1MB', '1.5GiB', '512 MiB', '9007199254740993'],
    allowed: 'MiB',
  },
  maxUploadBytes: { values: ['0', '8GB'], allowed: 'GiB' },
  maxBatchFileBytes: { values: ['0', 'much'], allowed: 'MiB' },
  maxBatchLines: { values: ['0', '1000000001', '1e3', '1.5'], allowed: 'from 1 to 1000000000' },
  maxLineBytes: { values: ['1023', '10 MiB'], allowed: 'at least 1024' },
  maxConcurrency: { values: ['0', '16385', '-1', 'many'], allowed: 'from 1 to 16384' },
  memoryBudget: { values: ['15MiB', '16M'], allowed: 'at least 16777216' },
  maxResponseBytes: { values: ['1000', '64MB'], allowed: 'at least 1024' },
  connectTimeout: { values: ['99ms', '0', 'soon'], allowed: 'at least 100 ms' },
  byteTimeout: { values: ['99ms', '5', '600h'], allowed: 'at least 100 ms' },
  answerTimeout: { values: ['99ms', '1', '600h'], allowed: 'at least 100 ms' },
  requestTimeout: { values: ['99ms', '15', '1d', '600h', '-1s'], allowed: '500ms, 10s, 15m or 2h' },
  liveStreams: { values: ['0', '-1', 'many', '100001'], allowed: 'from 1 to 100000' },
  metastoreType: { values: ['MEMORY', 'file'], allowed: 'one of AUTO, LOCAL, S3, TOS' },
  llmReadyEndpoint: {
    values: ['localhost:8000', 'http://', 'http://h/x?y=1', 'ftp://h/health'],
    allowed: 'such as http://localhost:8000/health',
  },
  llmReadyTimeout: { values: ['30', '100ms', 'never'], allowed: 'a duration of at least 1000 ms' },
  jobName: { values: ['a/b', '..', 'two words'], allowed: 'a name out of A-Z' },
  jobNamespace: { values: ['a/b'], allowed: 'a name out of A-Z' },
  jobUid: { values: ['a/b', '.'], allowed: 'a name out of A-Z' },
  jobCompletionIndex: { values: ['-1', 'first', '1.5'], allowed: 'a whole number' },
  podName: { values: ['a/b'], allowed: 'a name out of A-Z' },
  podUid: { values: ['a/b'], allowed: 'a name out of A-Z' },
  batchInputFileId: null,
  batchEndpoint: null,
  batchOutputFileId: null,
  batchErrorFileId: null,
  batchAibrix: null,
  batchOpts: null,
  batchFailAfter: null,
  kubernetesServiceHost: null,
  kubernetesServicePort: { values: ['https', '1234567'], allowed: 'a port' },
  serviceAccountDir: null,
  webhookSecret: {
    values: [
      'hush',
      'whsec_c2hvcnQ=',
      'whsec_not-base64-but-of-that-length',
      `whsec_${'QUJD'.repeat(22)}`,
    ],
    allowed: '24 to 64 bytes in base64',
  },
  webhookAllowPrivate: { values: ['yes', '1', 'TRUE'], allowed: 'true, false' },
  webhookGiveUp: { values: ['1d', 'never'], allowed: '500ms, 10s, 15m or 2h' },
  crashApart: { values: ['10', 'never'], allowed: '500ms, 10s, 15m or 2h' },
  allowedBuckets: {
    values: ['bucket', 's3://*', 's3://bucket/*?', 's3://bucket/../x', 'https://bucket/', 's3://'],
    allowed: 's3://bucket/folder/',
  },
  serverUrl: { values: ['localhost:8080', 'ftp://host', 'http://'], allowed: 'a URL such as' },
  serverApiKey: { values: ['two words', 'schlüssel'], allowed: 'printable ASCII' },
  segmentKeep: { values: ['never', '-1h', '1w', '36501d'], allowed: 'such as 90s, 15m, 24h' },
  fileRetention: { values: ['59s', '0', 'Never', '36501d'], allowed: 'never, or a time' },
  jobRetention: { values: ['59s', 'ever'], allowed: 'never, or a time' },
  orphanAge: { values: ['6h', 'never'], allowed: 'at least 25200 s' },
  gcInterval: { values: ['999ms', 'never', '1d'], allowed: 'at least 1000 ms' },
  shutdownGrace: { values: ['5', 'soon'], allowed: '500ms, 10s, 15m or 2h' },
};

const NAMES = Object.keys(SETTINGS) as SettingName[];

describe('defaults', () => {
  test('an empty environment gives every setting that has a default', () => {
    const settings = loadSettings({});
    const unset = NAMES.filter((name) => settings[name] === undefined);
    expect(unset).toEqual(NAMES.filter((name) => SETTINGS[name].default === undefined));
    expect(settings).toMatchObject({
      httpAddr: { host: '127.0.0.1', port: 8080 },
      engineUrls: [],
      roles: ['api', 'worker', 'sweeper'],
      memoryBudget: 128 * 1024 * 1024,
      connectTimeout: 10_000,
      requestTimeout: 900_000,
      byteTimeout: 300_000,
      answerTimeout: 3_600_000,
    });
  });

  test('a variable that is empty or blank counts as unset', () => {
    const empty = Object.fromEntries(NAMES.map((name) => [SETTINGS[name].env, ' ']));
    expect(loadSettings(empty)).toEqual(loadSettings({}));
  });

  test('every setting has a doc and a variable of its own', () => {
    const variables = NAMES.map((name) => SETTINGS[name].env);
    expect(new Set(variables).size).toBe(NAMES.length);
    for (const name of NAMES) expect(SETTINGS[name].doc).toMatch(/^\w.*\.$/);
  });
});

describe('values', () => {
  const GOOD: [string, string, SettingName, unknown][] = [
    ['HTTP_ADDR', '[::1]:80', 'httpAddr', { host: '::1', port: 80 }],
    ['HTTP_ADDR', ':9000', 'httpAddr', { host: '0.0.0.0', port: 9_000 }],
    ['REDIS_URL', 'rediss://user:pw@host:6380/2', 'redisUrl', 'rediss://user:pw@host:6380/2'],
    ['REDIS_URL', 'redis+unix:///run/redis.sock', 'redisUrl', 'redis+unix:///run/redis.sock'],
    ['ROLES', ' api , worker ', 'roles', ['api', 'worker']],
    ['LOG_LEVEL', 'DEBUG', 'logLevel', 'debug'],
    ['ENGINE_URLS', 'http://a:1/v1/, https://b/x/v1', 'engineUrls', ['http://a:1', 'https://b/x']],
    ['MAX_FILE_BYTES', '2GiB', 'maxFileBytes', 2 ** 31],
    ['MAX_FILE_BYTES', '1073741824', 'maxFileBytes', 2 ** 30],
    ['MAX_UPLOAD_BYTES', '20GiB', 'maxUploadBytes', 20 * 2 ** 30],
    ['SHUTDOWN_GRACE', '0ms', 'shutdownGrace', 0],
    ['SEGMENT_KEEP', '0s', 'segmentKeep', 0],
    ['FILE_RETENTION', 'never', 'fileRetention', null],
    ['JOB_RETENTION', '30d', 'jobRetention', 30 * 86_400_000],
    ['ORPHAN_AGE', '7h', 'orphanAge', 25_200_000],
    ['ALLOWED_BUCKETS', ',', 'allowedBuckets', []],
    ['REQUEST_TIMEOUT', '2h', 'requestTimeout', 7_200_000],
    ['BATCH_SSH_KEY_FILE', '/keys/id', 'sshKeyFile', '/keys/id'],
    ['RUNPOD_DATA_CENTERS', 'EU-RO-1, US-KS-2,', 'runpodDataCenters', ['EU-RO-1', 'US-KS-2']],
    ['LAMBDA_CLOUD_SSH_KEYS', 'my laptop,ci', 'lambdaCloudSshKeys', ['my laptop', 'ci']],
    ['LAMBDA_CLOUD_REGION', 'us-west-1', 'lambdaCloudRegions', ['us-west-1']],
    ['CAPACITY_WAIT', '0s', 'capacityWait', 0],
    ['MAX_COST_USD', '0.50', 'maxCostUsd', 0.5],
  ];
  test.for(GOOD)('%s=%s', ([variable, value, name, parsed]) => {
    expect(loadSettings({ [variable]: value })[name]).toEqual(parsed);
  });

  const cases = NAMES.flatMap((name) => {
    const bad = BAD[name];
    return (bad?.values ?? []).map((value) => ({ name, value, allowed: bad?.allowed ?? '' }));
  });
  test('there are bad values of every setting that has any', () => {
    expect(Object.keys(BAD).toSorted()).toEqual(NAMES.toSorted());
    const anyText = [
      'batchAibrix',
      'batchEndpoint',
      'batchErrorFileId',
      'batchFailAfter',
      'batchInputFileId',
      'batchOpts',
      'batchOutputFileId',
      'dataDir',
      'defaultTemplate',
      'kubeconfig',
      'kubernetesContext',
      'kubernetesJobTemplate',
      'kubernetesServiceHost',
      'serviceAccountDir',
      'sshKeyFile',
    ];
    expect(NAMES.filter((name) => BAD[name] === null).toSorted()).toEqual(anyText);
  });

  test.for(cases)('$name refuses $value', ({ name, value, allowed }) => {
    const setting = SETTINGS[name];
    const error = refusal({ [setting.env]: value });
    expect(error).toMatchObject({ kind: 'InvalidInput', code: 'settings.invalid' });
    expect(error.message).toMatch(/^One setting is wrong:\n {2}[A-Z]/);
    expect(error.message).toContain(`${setting.env} must be`);
    expect(error.message).toContain(allowed);
    expect(error.message).toContain(setting.doc);
  });

  test('all problems are told at once', () => {
    const error = refusal({ HTTP_ADDR: 'x', ROLES: 'y', MAX_CONCURRENCY: '0', LOG_LEVEL: 'info' });
    expect(error.message).toContain('3 settings are wrong');
    const named = [...error.message.matchAll(/^ {2}([A-Z_]+) /gm)].map((match) => match[1]);
    expect(named).toEqual(['HTTP_ADDR', 'ROLES', 'MAX_CONCURRENCY']);
    expect(error.message).toContain("got 'x'");
  });

  test('a store that is no Redis is refused with the mend', () => {
    const { message } = refusal({ STORE_URI: 'sqlite:///x' });
    expect(message).toContain('unset STORE_URI');
    expect(message).toContain('REDIS_URL');
  });
});

describe('secrets', () => {
  const SECRETS: Record<string, string> = {
    REDIS_URL: 'http://user:hunter2@host',
    STORE_URI: 'postgres://user:hunter2@host/db',
    ENGINE_API_KEY: 'hunter2 hunter2',
    ENGINE_URLS: 'http://fine,http://user:hunter2@host',
    RUNPOD_API_KEY: 'hunter2 hunter2',
    LAMBDA_CLOUD_API_KEY: 'hunter2 hunter2',
    RUNPOD_BASE_URL: 'https://user:hunter2@host/v2',
  };
  test.for(Object.entries(SECRETS))('%s is not repeated', ([variable, value]) => {
    const { message } = refusal({ [variable]: value });
    expect(message).toContain(variable);
    expect(message).not.toContain('hunter2');
  });

  test('nor is a key in a query', () => {
    expect(refusal({ ENGINE_URLS: 'http://host/?key=hunter2' }).message).not.toContain('hunter2');
  });
});

describe('conflicts', () => {
  const CONFLICTS: [Record<string, string>, string][] = [
    [
      { MAX_RESPONSE_BYTES: '20MiB', MEMORY_BUDGET: '16MiB', MAX_LINE_BYTES: '1MiB' },
      'MAX_RESPONSE_BYTES',
    ],
    [
      { MAX_LINE_BYTES: '9MiB', MEMORY_BUDGET: '16MiB', MAX_RESPONSE_BYTES: '1MiB' },
      'MAX_LINE_BYTES',
    ],
    [{ MAX_BATCH_FILE_BYTES: '9GiB' }, 'MAX_BATCH_FILE_BYTES'],
    [{ KEY_REQUESTS_PER_SECOND: '4' }, 'KEY_REQUESTS_PER_SECOND'],
    [{ KEY_TOKENS_PER_MINUTE: '4' }, 'KEY_TOKENS_PER_MINUTE'],
  ];
  test.for(CONFLICTS)('%o', ([environment, variable]) => {
    const { message } = refusal(environment);
    expect(message).toMatch(/^One setting is wrong/);
    expect(message).toContain(variable);
  });

  test('limits of a key are none where there is one', () => {
    const limits = { KEY_REQUESTS_PER_SECOND: '4', KEY_TOKENS_PER_MINUTE: '5' };
    expect(loadSettings({ ...limits, ENGINE_API_KEY: 'hush' })).toMatchObject({
      keyRequestsPerSecond: 4,
      keyTokensPerMinute: 5,
    });
    expect(refusal(limits).message).toMatch(/^2 settings are wrong/);
  });

  test('all of them are told at once', () => {
    const { message } = refusal({ MEMORY_BUDGET: '16MiB', MAX_BATCH_FILE_BYTES: '9GiB' });
    expect(message).toContain('3 settings are wrong');
  });
});

describe('leasing', () => {
  const RUNPOD = { RUNPOD_API_KEY: 'rp_1', AIBRIX_BATCH_SSH_KEY_FILE: '/keys/id' };
  const LAMBDA = { LAMBDA_CLOUD_API_KEY: 'l1', LAMBDA_CLOUD_SSH_KEYS: 'ci' };
  const BOTH = { ...RUNPOD, ...LAMBDA };
  const PUBLIC_KEY =
    'ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJqZ0mYzm3v9cyTnYwVQ0TyFVZrYyW1y0C3m8dUrWmVh me';

  test.for<[Record<string, string>, string[]]>([
    [{}, []],
    [{ ENGINE_URLS: 'http://a:1' }, ['static']],
    [{ ENGINE_URLS: 'http://a:1', PROVISIONER: 'static' }, ['static']],
    [{ ...BOTH, PROVISIONER: 'lambdaCloud, runpod,lambdaCloud' }, ['lambdaCloud', 'runpod']],
    [{ ...BOTH, ENGINE_URLS: 'http://a:1', PROVISIONER: 'runpod' }, ['runpod']],
  ])('PROVISIONER: %o', ([environment, list]) => {
    expect(loadSettings(environment).provisioners).toEqual(list);
  });

  test('static is nothing without an engine', () => {
    expect(refusal({ PROVISIONER: 'static' }).message).toContain('needs ENGINE_URLS');
  });

  const without = (all: Record<string, string>, ...names: string[]) =>
    Object.fromEntries(Object.entries(all).filter(([name]) => !names.includes(name)));

  test.for<[provider: string, missing: string[], says: RegExp]>([
    ['runpod', ['RUNPOD_API_KEY'], /runpod needs RUNPOD_API_KEY: set it/],
    [
      'runpod',
      ['RUNPOD_API_KEY', 'AIBRIX_BATCH_SSH_KEY_FILE'],
      /runpod needs RUNPOD_API_KEY and RUNPOD_SSH_PUBLIC_KEY: set them/,
    ],
    ['lambdaCloud', ['LAMBDA_CLOUD_API_KEY'], /lambdaCloud needs LAMBDA_CLOUD_API_KEY:/],
    ['lambdaCloud', ['LAMBDA_CLOUD_SSH_KEYS'], /lambdaCloud needs LAMBDA_CLOUD_SSH_KEYS:/],
    ['lambdaCloud', ['AIBRIX_BATCH_SSH_KEY_FILE'], /with AIBRIX_BATCH_SSH_KEY_FILE: name/],
    ['runpod,lambdaCloud', ['RUNPOD_API_KEY'], /take runpod out of PROVISIONER/],
  ])('PROVISIONER=%s without %o', ([provider, missing, says]) => {
    const { message } = refusal({ ...without(BOTH, ...missing), PROVISIONER: provider });
    expect(message).toContain('resource manager init: missing credential: ');
    expect(message).toMatch(says);
  });

  test('every provider that lacks something is told at once', () => {
    const { message } = refusal({ PROVISIONER: 'runpod,lambdaCloud' });
    expect(message.match(/resource manager init: missing credential:/g)).toHaveLength(3);
  });

  test('a provider that is not enabled may lack what it likes', () => {
    expect(loadSettings({ ...LAMBDA, ENGINE_URLS: 'http://a:1' }).runpodApiKey).toBeUndefined();
    loadSettings({ ...RUNPOD, PROVISIONER: 'runpod' });
  });

  test('who logs in to no machine needs no private key', () => {
    const environment = { RUNPOD_API_KEY: 'x', RUNPOD_SSH_PUBLIC_KEY: PUBLIC_KEY };
    loadSettings({ ...environment, PROVISIONER: 'runpod', ROLES: 'api,sweeper' });
    expect(refusal({ ...environment, PROVISIONER: 'runpod' }).message).toContain('logged in to');
  });
});

describe('.env', () => {
  function write(text: string): string {
    const folder = mkdtempSync(join(tmpdir(), 'sluice-env-'));
    onTestFinished(() => rmSync(folder, { recursive: true }));
    const path = join(folder, '.env');
    writeFileSync(path, text);
    return path;
  }

  test('adds what the environment does not say, and lets other names alone', () => {
    const path = write('MAX_CONCURRENCY=7\nPATH=/nowhere\nPGPASSWORD=x\n# LOG_LEVEL=debug\n');
    const environment = readEnvironment(path);
    expect(loadSettings(environment)).toMatchObject({ maxConcurrency: 7, logLevel: 'info' });
    expect(environment['PATH']).toBe(process.env['PATH']);
  });

  test.for([
    ['MAX_CONCURENCY', 'MAX_CONCURRENCY'],
    ['ENGINE_URL', 'ENGINE_URLS'],
    ['LOG_LEVLE', 'LOG_LEVEL'],
    ['ROLEZ', 'ROLES'],
    ['HTTP_ADDRR', 'HTTP_ADDR'],
  ])('%s is a slip of the pen', ([name, meant]) => {
    const message = `${name} in .* is no setting: did you mean ${meant}\\?`;
    expect(() => readEnvironment(write(`${name}=1\n`))).toThrow(new RegExp(message));
  });

  test('need not be there', () => {
    expect(readEnvironment(join(tmpdir(), 'no-such-folder', '.env'))).toBe(process.env);
  });
});
