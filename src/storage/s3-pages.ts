import { transient } from '../domain/errors.ts';

/**
 * Where a listing goes on; undefined at its end. One that says that there is more, and not where, or where it was just
 * now, must not pass for a whole one, nor go on for ever.
 */
export function markerAfter(
  isTruncated: boolean | undefined,
  marker: string | undefined,
  last: string | undefined,
): string | undefined {
  if (isTruncated !== true) return undefined;
  if (marker !== undefined && marker !== '' && marker !== last) return marker;
  const what = marker === last && marker !== undefined ? 'the same place again' : 'no place';
  throw transient(
    'storage.unavailable',
    `the store says that its list has more, and gives ${what} to go on from`,
  );
}
