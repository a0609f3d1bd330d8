/** One version of an object, whose bytes never change. */
export interface ObjectVersion {
  /** As the store gives it, quotes included. */
  etag: string;
  /** Null where the bucket keeps no versions. */
  version: string | null;
}

/** Some stores leave out the quotes here and there. */
export function isSameEtag(a: string, b: string): boolean {
  return a.replaceAll('"', '') === b.replaceAll('"', '');
}

/** Whether what a store gave is the version that was asked for, as far as it says. */
export function isVersion(of: ObjectVersion, given: ObjectVersion): boolean {
  if (of.etag !== '' && !isSameEtag(of.etag, given.etag)) return false;
  return of.version === null || given.version === null || of.version === given.version;
}
