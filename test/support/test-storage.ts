import { spawnSync } from 'node:child_process';
import { loadSettings } from '../../config/load.ts';
import { describeStorage, storageSettings } from '../../src/main/storage-settings.ts';
import { describeError } from '../../src/domain/errors.ts';

const MISSING = `--live needs a bucket: set
  S3_BUCKET, S3_REGION for Amazon S3, or S3_ENDPOINT for another store, and AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY
  (or a profile); or TOS_BUCKET, TOS_REGION, TOS_ACCESS_KEY and TOS_SECRET_KEY.
Everything is written below a random path of S3_PREFIX or TOS_PREFIX and removed afterwards.`;

/** The bucket of the settings, or ends with what is missing. */
function requireBucket(): string {
  try {
    const settings = storageSettings(loadSettings());
    if (settings.type !== 'LOCAL') return describeStorage(settings);
    console.error(MISSING);
  } catch (error) {
    console.error(describeError(error));
  }
  process.exit(1);
}

/** `npm run test:storage [-- --live]`: the tests of storages, or the one suite on a bucket that exists. */
const isLive = process.argv.includes('--live');
if (isLive) console.log(`The storage's tests run on ${requireBucket()}`);
const files = isLive ? ['storage-buckets'] : ['storage', 'storage-buckets'];
const args = [
  'run',
  '--project',
  'conformance',
  ...files.map((name) => `test/conformance/${name}.test.ts`),
];
const env = isLive ? { ...process.env, STORAGE_LIVE: 'true' } : process.env;
const { status } = spawnSync('vitest', args, { stdio: 'inherit', env });
process.exitCode = status ?? 1;
