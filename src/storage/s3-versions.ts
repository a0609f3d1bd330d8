import { DeleteObjectCommand, ListObjectVersionsCommand } from '@aws-sdk/client-s3';
import type { ListObjectVersionsCommandOutput } from '@aws-sdk/client-s3';
import type { S3Bucket } from './s3-client.ts';
import { ABSENT } from './s3-get.ts';
import { markerAfter } from './s3-pages.ts';
import { failureOf } from './s3-retry.ts';

/**
 * What became of an object and of its old versions: `gone`; `kept` where the bucket keeps versions, and the store does
 * not let us remove, or see, them.
 */
export type Erased = 'gone' | 'kept';

/** A version, or a marker of a delete. */
interface Version {
  id: string;
  isMarker: boolean;
}

/** What a store says that has no versions to list, or does not let us. */
const REFUSALS = new Set([400, 401, 403, 405, 501]);

/**
 * Deletes an object, and where the answer tells that the bucket keeps versions, these and the markers of deletes one by
 * one (stores want checksums for many at once that others refuse). Rejects with an error of the store.
 */
export async function erase(bucket: S3Bucket, key: string): Promise<Erased> {
  const input = { Bucket: bucket.options.bucket, Key: bucket.full(key) };
  try {
    const { DeleteMarker: isMarked, VersionId: id } = await bucket.call((options) =>
      bucket.client.send(new DeleteObjectCommand(input), options),
    );
    if (isMarked !== true && id === undefined) return 'gone';
  } catch (error) {
    if (ABSENT.has(failureOf(error).code)) return 'gone';
    throw bucket.fail('DeleteObject', error);
  }
  const versions = await versionsOf(bucket, input.Key);
  if (versions === null) return 'kept';
  // Markers last: while one is the newest, nobody sees what is older.
  const inOrder = versions.toSorted((a, b) => Number(a.isMarker) - Number(b.isMarker));
  for (const version of inOrder) {
    if (!(await removeVersion(bucket, input.Key, version))) return 'kept';
  }
  return 'gone';
}

/** Those of one key that a delete is about, which is not one that was put since; null where the store does not say. */
async function versionsOf(bucket: S3Bucket, whole: string): Promise<Version[] | null> {
  const found: Version[] = [];
  let isListed = false;
  for await (const page of pages(bucket, whole)) {
    if (page === null) return null;
    for (const { Key, VersionId: id, IsLatest, isMarker } of entriesOf(page)) {
      if (Key !== whole || id === undefined) continue;
      isListed = true;
      // Where versions are suspended the newest is always called so: by now it may be one that was put since.
      if (isMarker && id === 'null') continue;
      if (isMarker || IsLatest !== true) found.push({ id, isMarker });
    }
  }
  // The delete has just made a marker at least: a store that lists none does not list versions.
  return isListed ? found : null;
}

function entriesOf({ Versions = [], DeleteMarkers = [] }: ListObjectVersionsCommandOutput) {
  const versions = Versions.map((each) => ({ ...each, isMarker: false }));
  return [...versions, ...DeleteMarkers.map((each) => ({ ...each, isMarker: true }))];
}

/** Lists until other keys come, which only begin like this one; ends with null where the store refuses. */
async function* pages(
  bucket: S3Bucket,
  whole: string,
): AsyncGenerator<ListObjectVersionsCommandOutput | null> {
  let marker: string | undefined;
  let from: { KeyMarker?: string; VersionIdMarker?: string } = {};
  do {
    const page = await listPage(bucket, { Prefix: whole, ...from });
    yield page;
    const { NextKeyMarker: KeyMarker = '', NextVersionIdMarker: VersionIdMarker = '' } = page ?? {};
    if (KeyMarker !== '' && KeyMarker !== whole) return;
    const next = KeyMarker === '' ? '' : `${VersionIdMarker} ${KeyMarker}`;
    marker = markerAfter(page?.IsTruncated, next, marker);
    from = { KeyMarker, ...(VersionIdMarker === '' ? {} : { VersionIdMarker }) };
  } while (marker !== undefined);
}

async function listPage(
  bucket: S3Bucket,
  more: { Prefix: string; KeyMarker?: string; VersionIdMarker?: string },
): Promise<ListObjectVersionsCommandOutput | null> {
  const input = { Bucket: bucket.options.bucket, ...more };
  try {
    return await bucket.call((options) =>
      bucket.client.send(new ListObjectVersionsCommand(input), options),
    );
  } catch (error) {
    if (isRefused(error)) return null;
    throw bucket.fail('ListObjectVersions', error);
  }
}

/** False where the store refuses. */
async function removeVersion(bucket: S3Bucket, whole: string, { id }: Version): Promise<boolean> {
  const input = { Bucket: bucket.options.bucket, Key: whole, VersionId: id };
  try {
    await bucket.call((options) => bucket.client.send(new DeleteObjectCommand(input), options));
    return true;
  } catch (error) {
    if (ABSENT.has(failureOf(error).code)) return true;
    if (isRefused(error)) return false;
    throw bucket.fail('DeleteObjectVersion', error);
  }
}

function isRefused(error: unknown): boolean {
  const { status } = failureOf(error);
  return status !== null && REFUSALS.has(status);
}
