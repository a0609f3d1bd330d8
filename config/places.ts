import * as v from 'valibot';
import { formatLocation, isWithin, parseFolderUrl } from '../src/domain/location.ts';
import type { Location, Scheme } from '../src/domain/location.ts';
import { text } from './kinds.ts';
import type { Setting } from './kinds.ts';
import { halfKeys, storageKind } from './storage.ts';
import type { StorageValues } from './storage.ts';

const MESSAGE =
  'must be a comma-separated list of URLs such as s3://bucket/folder/ or tos://bucket, without wildcards';

function parseFolders(value: string): (Location | null)[] {
  const parts = value.split(',').map((part) => part.trim());
  return parts
    .filter((part) => part !== '')
    .map((part) => {
      const parsed = parseFolderUrl(part);
      return 'problem' in parsed ? null : parsed.location;
    });
}

const folders = v.pipe(
  text,
  v.transform(parseFolders),
  v.array(
    v.custom<Location>((folder) => folder !== null, MESSAGE),
    MESSAGE,
  ),
);

/** Buckets of others. */
export const PLACES_SETTINGS = {
  allowedBuckets: {
    doc: "Folders of buckets in which batches may have their input (input_file_id: s3://bucket/key) and output (aibrix.output_prefix). Whoever may create a batch can read and write there with this server's credentials: those of S3_* and AWS_* for s3://, of TOS_* for tos://.",
    env: 'ALLOWED_BUCKETS',
    default: '',
    schema: folders,
  },
} as const satisfies Record<string, Setting<v.GenericSchema<string | undefined, unknown>>>;

interface PlacesValues extends StorageValues {
  readonly allowedBuckets: readonly Location[];
}

/** What ALLOWED_BUCKETS names and the other settings do not let it have, each with the mend. */
export function placesConflicts(values: PlacesValues): string[] {
  const schemes = new Set(values.allowedBuckets.map(({ scheme }) => scheme));
  return [
    ...(schemes.has('s3') ? s3Lacks(values) : []),
    ...(schemes.has('tos') ? tosLacks(values) : []),
    ...values.allowedBuckets.flatMap((folder) => ownConflict(values, folder)),
  ];
}

function s3Lacks(values: PlacesValues): string[] {
  const { s3Endpoint, s3Region } = values;
  // Where our own files are in S3, they are looked at anyway.
  const half = storageKind(values) === 'S3' ? [] : halfKeys(values);
  const problems = half.map((problem) => `ALLOWED_BUCKETS has s3:// URLs: ${problem}`);
  if (s3Endpoint !== undefined || s3Region !== undefined) return problems;
  const lacks =
    'ALLOWED_BUCKETS has s3:// URLs, which need S3_REGION, or S3_ENDPOINT of another store.';
  return [lacks, ...problems];
}

function tosLacks(values: PlacesValues): string[] {
  const { tosEndpoint, tosRegion, tosAccessKey, tosSecretKey } = values;
  const isSet = tosAccessKey !== undefined && tosSecretKey !== undefined;
  if (isSet && (tosEndpoint ?? tosRegion) !== undefined) return [];
  return [
    'ALLOWED_BUCKETS has tos:// URLs, which need TOS_ACCESS_KEY, TOS_SECRET_KEY and TOS_REGION or TOS_ENDPOINT.',
  ];
}

/** A batch that names what this server itself stores would read the files of others, or change its answers. */
function ownConflict(values: PlacesValues, folder: Location): string[] {
  const own = ownFolder(values);
  if (own === null || storeOf(own.scheme, values) !== storeOf(folder.scheme, values)) return [];
  const same = { ...own, scheme: folder.scheme };
  if (!isWithin([folder], same) && !isWithin([same], folder)) return [];
  const name = formatLocation(folder);
  const mend = `allow another folder or bucket, or keep own files apart with ${own.scheme.toUpperCase()}_PREFIX`;
  return [`ALLOWED_BUCKETS has ${name}, where this server keeps its own files: ${mend}.`];
}

/** What tells a store: TOS answers at several hosts, of which S3_ENDPOINT may be one, and Amazon's buckets have one each. */
function storeOf(scheme: Scheme, { s3Endpoint, tosEndpoint, tosRegion }: PlacesValues): string {
  const endpoint =
    scheme === 's3'
      ? (s3Endpoint ?? 'https://s3.amazonaws.com')
      : (tosEndpoint ?? `https://tos-${tosRegion}.volces.com`);
  const { host } = new URL(endpoint);
  const [amazon] = /amazonaws\.com(?:\.cn)?$/.exec(host) ?? [];
  if (amazon !== undefined) return amazon;
  return host.replace(/^tos-s3-/, 'tos-').replace(/\.i(volces|bytepluses)\.com$/, '.$1.com');
}

function ownFolder(values: PlacesValues): Location | null {
  const kind = storageKind(values);
  const { s3Bucket, s3Prefix, tosBucket, tosPrefix } = values;
  if (kind === 'S3' && s3Bucket !== undefined) {
    return { scheme: 's3', bucket: s3Bucket, key: s3Prefix };
  }
  if (kind === 'TOS' && tosBucket !== undefined) {
    return { scheme: 'tos', bucket: tosBucket, key: tosPrefix };
  }
  return null;
}
