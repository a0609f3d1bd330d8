import * as v from 'valibot';
import { BUCKET_NAME } from '../src/domain/location.ts';
import { bytes, oneOf, text } from './kinds.ts';
import type { Setting } from './kinds.ts';

const GIB = 2 ** 30;

const kind = v.pipe(
  text,
  v.toUpperCase(),
  v.picklist(['AUTO', 'LOCAL', 'S3', 'TOS'], 'must be one of AUTO, LOCAL, S3, TOS'),
);

const BUCKET_MESSAGE =
  'must be the name of a bucket: 3 to 63 characters out of a-z, 0-9, - and ., and no URL';

const bucket = v.optional(v.pipe(text, v.regex(BUCKET_NAME, BUCKET_MESSAGE)));

const ENDPOINT_MESSAGE =
  'must be the URL of the store alone, such as https://minio.example:9000, without user, path or query: the bucket has a setting of its own';

function endpointOf(value: string): string | null {
  const whole = value.includes('://') ? value : `https://${value}`;
  if (!/^https?:\/\/[^/@?#]+\/?$/.test(whole) || !URL.canParse(whole)) return null;
  return new URL(whole).origin;
}

const endpoint = v.optional(v.pipe(text, v.transform(endpointOf), v.string(ENDPOINT_MESSAGE)));

const region = v.optional(
  v.pipe(text, v.regex(/^[a-z0-9-]{2,50}$/, 'must be the name of a region, such as us-west-2')),
);

const PREFIX_MESSAGE =
  'must be a path of names out of A-Z, a-z, 0-9, ., _ and -, such as sluice/live';

/** A path that ends in a slash, or ''. */
const prefix = v.pipe(
  text,
  v.regex(/^(?!.*(?:^|\/)\.\.?(?:\/|$))[\w.-]+(?:\/[\w.-]+)*\/?$|^$/, PREFIX_MESSAGE),
  v.maxLength(300, PREFIX_MESSAGE),
  v.transform((value) => (value === '' || value.endsWith('/') ? value : `${value}/`)),
);

const key = v.optional(v.pipe(text, v.regex(/^\S+$/, 'must be without spaces')));

const PART_MESSAGE = 'must be from 5MiB to 1GiB';

/** Where files lie. The other names are those of AIBrix and of Amazon's SDK. */
export const STORAGE_SETTINGS = {
  storageType: {
    doc: 'Where files lie: LOCAL in DATA_DIR, S3 in S3_BUCKET, TOS in TOS_BUCKET. AUTO: in the bucket that is set, else LOCAL.',
    env: 'STORAGE_TYPE',
    default: 'AUTO',
    schema: kind,
  },
  s3Bucket: {
    doc: 'Bucket of Amazon S3 or of a store that speaks its protocol (MinIO, Ceph, R2, GCS, OSS, ...), with AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or what the AWS SDK finds.',
    env: 'S3_BUCKET',
    also: ['STORAGE_AWS_BUCKET'],
    default: undefined,
    schema: bucket,
  },
  s3Endpoint: {
    doc: 'URL of the store, without the bucket. Unset: Amazon S3.',
    env: 'S3_ENDPOINT',
    also: ['STORAGE_AWS_ENDPOINT_URL', 'AWS_ENDPOINT_URL_S3', 'AWS_ENDPOINT_URL'],
    default: undefined,
    schema: endpoint,
  },
  s3Region: {
    doc: 'Region of the bucket. Amazon S3 needs it; other stores mostly take us-east-1, which they get when it is unset.',
    env: 'S3_REGION',
    also: ['STORAGE_AWS_REGION', 'AWS_REGION', 'AWS_DEFAULT_REGION'],
    default: undefined,
    schema: region,
  },
  s3PathStyle: {
    doc: 'Whether the bucket is in the path of URLs (true) or in the name of the host (false). auto: as the store is known to want it.',
    env: 'S3_PATH_STYLE',
    isRare: true,
    default: 'auto',
    schema: oneOf(['auto', 'true', 'false']),
  },
  s3Prefix: {
    doc: 'Path in the bucket below which everything lies, so that others may use the bucket, too.',
    env: 'S3_PREFIX',
    isRare: true,
    default: '',
    schema: prefix,
  },
  s3PartSize: {
    doc: 'Size of the parts in which long objects are uploaded; later parts of very long ones are larger, except in Cloudflare R2. A writer holds up to three.',
    env: 'S3_PART_SIZE',
    isRare: true,
    default: '9MiB',
    schema: v.pipe(bytes(5 * 2 ** 20), v.maxValue(GIB, PART_MESSAGE)),
  },
  awsAccessKeyId: {
    doc: "Access key for S3_BUCKET. Unset: what Amazon's SDK finds (profile, web identity, role of the machine).",
    env: 'AWS_ACCESS_KEY_ID',
    isRare: true,
    also: ['STORAGE_AWS_ACCESS_KEY_ID'],
    default: undefined,
    schema: key,
    secret: true,
  },
  awsSecretAccessKey: {
    doc: 'Secret key that belongs to AWS_ACCESS_KEY_ID.',
    env: 'AWS_SECRET_ACCESS_KEY',
    isRare: true,
    also: ['STORAGE_AWS_SECRET_ACCESS_KEY'],
    default: undefined,
    schema: key,
    secret: true,
  },
  awsSessionToken: {
    doc: 'Token that belongs to a temporary AWS_ACCESS_KEY_ID.',
    env: 'AWS_SESSION_TOKEN',
    isRare: true,
    default: undefined,
    schema: key,
    secret: true,
  },
  tosBucket: {
    doc: 'Bucket of Volcano Engine TOS, with TOS_REGION, TOS_ACCESS_KEY and TOS_SECRET_KEY.',
    env: 'TOS_BUCKET',
    isRare: true,
    also: ['STORAGE_TOS_BUCKET', 'TOS_BUCKET_NAME'],
    default: undefined,
    schema: bucket,
  },
  tosEndpoint: {
    doc: 'Endpoint of TOS, such as https://tos-s3-cn-beijing.volces.com. Unset: the public one of TOS_REGION.',
    env: 'TOS_ENDPOINT',
    isRare: true,
    also: ['STORAGE_TOS_ENDPOINT'],
    default: undefined,
    schema: endpoint,
  },
  tosRegion: {
    doc: 'Region of TOS_BUCKET. Unset: the one that TOS_ENDPOINT names.',
    env: 'TOS_REGION',
    isRare: true,
    also: ['STORAGE_TOS_REGION'],
    default: undefined,
    schema: region,
  },
  tosPrefix: {
    doc: 'As S3_PREFIX, in TOS_BUCKET.',
    env: 'TOS_PREFIX',
    isRare: true,
    default: '',
    schema: prefix,
  },
  tosAccessKey: {
    doc: 'Access key for TOS_BUCKET.',
    env: 'TOS_ACCESS_KEY',
    isRare: true,
    also: ['STORAGE_TOS_ACCESS_KEY'],
    default: undefined,
    schema: key,
    secret: true,
  },
  tosSecretKey: {
    doc: 'Secret key that belongs to TOS_ACCESS_KEY.',
    env: 'TOS_SECRET_KEY',
    isRare: true,
    also: ['STORAGE_TOS_SECRET_KEY'],
    default: undefined,
    schema: key,
    secret: true,
  },
} as const satisfies Record<string, Setting<v.GenericSchema<string | undefined, unknown>>>;

export type StorageValues = {
  readonly [K in keyof typeof STORAGE_SETTINGS]: v.InferOutput<
    (typeof STORAGE_SETTINGS)[K]['schema']
  >;
};

/** What STORAGE_TYPE comes to, once the conflicts were found to be none. */
export function storageKind({ storageType, s3Bucket, tosBucket }: StorageValues) {
  if (storageType !== 'AUTO') return storageType;
  if (s3Bucket !== undefined) return 'S3';
  return tosBucket === undefined ? 'LOCAL' : 'TOS';
}

/** What settings of the storage do not fit together, each with the mend. */
export function storageConflicts(values: StorageValues): string[] {
  const { storageType, s3Bucket, tosBucket } = values;
  if (storageType === 'AUTO' && s3Bucket !== undefined && tosBucket !== undefined) {
    return [
      'S3_BUCKET and TOS_BUCKET are both set: say which one is meant with STORAGE_TYPE=S3 or STORAGE_TYPE=TOS, or unset the other.',
    ];
  }
  const kindOfStore = storageKind(values);
  if (kindOfStore === 'S3') return s3Conflicts(values);
  return kindOfStore === 'TOS' ? tosConflicts(values) : [];
}

function s3Conflicts(values: StorageValues): string[] {
  const { s3Bucket, s3Endpoint, s3Region } = values;
  const conflicts: string[] = [];
  if (s3Bucket === undefined) {
    conflicts.push('STORAGE_TYPE=S3 needs S3_BUCKET, the name of a bucket.');
  }
  const isAmazon = s3Endpoint === undefined || /\.amazonaws\.com(\.cn)?$/.test(s3Endpoint);
  if (isAmazon && s3Region === undefined) {
    conflicts.push(
      'Amazon S3 needs S3_REGION (or AWS_REGION), such as us-west-2. Another store needs S3_ENDPOINT.',
    );
  }
  return [...conflicts, ...halfKeys(values)];
}

function tosConflicts(values: StorageValues): string[] {
  const { tosBucket, tosEndpoint, tosRegion, tosAccessKey, tosSecretKey } = values;
  const conflicts: string[] = [];
  if (tosBucket === undefined) {
    conflicts.push('STORAGE_TYPE=TOS needs TOS_BUCKET, the name of a bucket.');
  } else if (tosBucket.includes('.')) {
    conflicts.push(
      `TOS_BUCKET '${tosBucket}' has a dot, which no host name of a bucket may have: take another bucket.`,
    );
  }
  if (tosEndpoint === undefined && tosRegion === undefined) {
    conflicts.push('TOS needs TOS_REGION, such as cn-beijing, or TOS_ENDPOINT.');
  }
  if (tosAccessKey === undefined || tosSecretKey === undefined) {
    conflicts.push('TOS needs TOS_ACCESS_KEY and TOS_SECRET_KEY.');
  }
  return conflicts;
}

/** A secret without its id, or the other way round, which Amazon's SDK would pair with something else that it finds. */
export function halfKeys({ awsAccessKeyId, awsSecretAccessKey }: StorageValues): string[] {
  if ((awsAccessKeyId === undefined) === (awsSecretAccessKey === undefined)) return [];
  return [
    'AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (or STORAGE_AWS_ACCESS_KEY_ID and STORAGE_AWS_SECRET_ACCESS_KEY) belong together: set both, or neither to use a profile or role.',
  ];
}

/** Names of keys that belong together, the id first: those that go first are before the others. */
const KEY_FAMILIES = [
  [
    ['AWS_ACCESS_KEY_ID', 'AWS_SECRET_ACCESS_KEY', 'AWS_SESSION_TOKEN'],
    ['STORAGE_AWS_ACCESS_KEY_ID', 'STORAGE_AWS_SECRET_ACCESS_KEY'],
  ],
  [
    ['TOS_ACCESS_KEY', 'TOS_SECRET_KEY'],
    ['STORAGE_TOS_ACCESS_KEY', 'STORAGE_TOS_SECRET_KEY'],
  ],
] as const;

/**
 * The environment with the keys of one owner: where the names of an id are several, secret and token are those that
 * belong to the first one that is set. Whatever is set beside it is somebody else's.
 */
export function withWholeKeys(
  environment: Readonly<Record<string, string | undefined>>,
): Readonly<Record<string, string | undefined>> {
  const chosen = { ...environment };
  for (const families of KEY_FAMILIES) {
    const own = families.find(([id]) => (environment[id] ?? '').trim() !== '');
    if (own === undefined) continue;
    const others = families.filter((family) => family !== own);
    for (const name of others.flat()) delete chosen[name];
  }
  return chosen;
}
