import * as fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import {
  formatLocation,
  formatPinned,
  isWithin,
  parseAddress,
  parseFolderUrl,
  parseObjectUrl,
  shownAddress,
} from '../../src/domain/location.ts';
import type { Location } from '../../src/domain/location.ts';

function folder(url: string): Location {
  const parsed = parseFolderUrl(url);
  if ('problem' in parsed) throw new Error(`${url} ${parsed.problem}`);
  return parsed.location;
}

function object(url: string): Location {
  const parsed = parseObjectUrl(url);
  if ('problem' in parsed) throw new Error(`${url} ${parsed.problem}`);
  return parsed.location;
}

describe('URLs of objects', () => {
  test.for([
    ['s3://bucket/key', { scheme: 's3', bucket: 'bucket', key: 'key' }],
    [
      's3://b-1.c/a/b c=d/é%2e+.jsonl',
      { scheme: 's3', bucket: 'b-1.c', key: 'a/b c=d/é%2e+.jsonl' },
    ],
    [`s3://${'b'.repeat(63)}/${'k'.repeat(1_024)}`, { bucket: 'b'.repeat(63) }],
    ['s3://bucket/.../..a', { key: '.../..a' }],
  ] as const)('%s names an object', ([url, location]) => {
    expect(object(url)).toMatchObject(location);
  });

  test.for([
    ['s3:/bucket/key', 'is no URL'],
    ['S3://bucket/key', 'is no URL'],
    ['gs://bucket/key', 'is no URL'],
    ['https://bucket/key', 'is no URL'],
    [' s3://bucket/key', 'is no URL'],
    ['s3:///key', 'where the name of a bucket'],
    ['s3://ab/key', 'where the name of a bucket'],
    ['s3://Bucket/key', 'where the name of a bucket'],
    ['s3://a..b/key', 'where the name of a bucket'],
    ['s3://-ab/key', 'where the name of a bucket'],
    ['s3://*/key', 'where the name of a bucket'],
    ['s3://user:secret@bucket/key', 'where the name of a bucket'],
    [`s3://${'b'.repeat(64)}/key`, 'where the name of a bucket'],
    ['tos://a.b/key', 'with a dot'],
    ['s3://bucket', 'no object in it'],
    ['s3://bucket/', 'no object in it'],
    ['s3://bucket/a/', 'ends in a slash'],
    ['s3://bucket/a\u202Eb', 'invisible character'],
    ['s3://bucket/a\u200B', 'invisible character'],
    ['s3://bucket/a\u2028', 'invisible character'],
    ['s3://bucket/a\u2029b', 'invisible character'],
    ['s3://bucket//', 'empty name'],
    ['s3://bucket//a', 'empty name'],
    ['s3://bucket/a//b', 'empty name'],
    ['s3://bucket/..', 'empty name, . or ..'],
    ['s3://bucket/a/../b', 'empty name, . or ..'],
    ['s3://bucket/./a', 'empty name, . or ..'],
    ['s3://bucket/a?versionId=1', 'has a ?'],
    ['s3://bucket/a#b', 'has a ?'],
    ['s3://bucket/a\\b', 'backslash'],
    ['s3://bucket/a\nb', 'control character'],
    ['s3://bucket/a\ud800', 'control character'],
    [`s3://bucket/${'é'.repeat(513)}`, 'more than 1024 bytes'],
  ] as const)('%j names none: %s', ([url, problem]) => {
    expect(parseObjectUrl(url)).toMatchObject({ problem: expect.stringContaining(problem) });
  });
});

test('a folder may end in a slash, and a bucket is one', () => {
  expect(folder('s3://bucket/a')).toEqual(folder('s3://bucket/a/'));
  expect(folder('tos://bucket')).toEqual({ scheme: 'tos', bucket: 'bucket', key: '' });
  expect(folder('tos://bucket/')).toEqual({ scheme: 'tos', bucket: 'bucket', key: '' });
  // What is written there needs room for its own name.
  const long = `s3://bucket/${'a'.repeat(863)}`;
  expect(folder(long).key).toHaveLength(864);
  expect(parseFolderUrl(`${long}a`)).toMatchObject({ problem: 'is longer than 864 bytes' });
});

describe('what is within a folder', () => {
  test.for([
    ['s3://bucket/a/b', true],
    ['s3://bucket/a/b/c', true],
    ['s3://bucket/a', false],
    ['s3://bucket/ab', false],
    ['s3://bucket/ab/c', false],
    ['s3://bucket/b/a/c', false],
    ['s3://bucket2/a/b', false],
    ['tos://bucket/a/b', false],
    ['s3://other/x', true],
  ] as const)('%s: %s', ([url, expected]) => {
    const allowed = ['s3://bucket/a', 's3://other'].map(folder);
    expect(isWithin(allowed, object(url))).toBe(expected);
  });

  const name = fc.stringMatching(/^[a-c]{1,3}$/);
  const path = fc.array(name, { minLength: 1, maxLength: 4 });

  test('a folder has exactly what lies below it by whole names', () => {
    const paths = fc.tuple(fc.array(name, { maxLength: 3 }), path);
    fc.assert(
      fc.property(paths, fc.boolean(), ([above, below], isSlashed) => {
        const place = folder(
          `s3://bucket/${above.join('/')}${isSlashed && above.length > 0 ? '/' : ''}`,
        );
        const target = object(`s3://bucket/${below.join('/')}`);
        const isBelow = below.length > above.length && above.every((each, n) => each === below[n]);
        expect(isWithin([place], target)).toBe(isBelow);
      }),
      { numRuns: 2_000 },
    );
  });

  test('no URL leads out of the folder that it begins with, however it is written', () => {
    const piece = fc.constantFrom(
      'a',
      'b',
      '.',
      '..',
      '/',
      '//',
      '\\',
      '%2e',
      '%2f',
      '?',
      '#',
      ' ',
    );
    fc.assert(
      fc.property(fc.array(piece, { maxLength: 8 }), (pieces) => {
        const parsed = parseObjectUrl(`s3://bucket/a/${pieces.join('')}`);
        if ('problem' in parsed) return;
        // What any server that tidies paths makes of it is still below.
        const { key } = parsed.location;
        expect(new URL(`http://x/${encodeURI(key)}`).pathname).toMatch(/^\/a\/./);
        expect(isWithin([folder('s3://bucket/a')], parsed.location)).toBe(true);
      }),
      { numRuns: 2_000 },
    );
  });
});

test('an address tells place and version, and nothing that is no address has one', () => {
  const location = object('s3://bucket/a b/ü%20&=+.jsonl');
  const etag = '"5d41-2&?=+"';
  for (const pin of [
    { etag, version: null },
    { etag, version: 'a+/=&v' },
  ]) {
    const address = formatPinned(location, pin);
    expect(parseAddress(address)).toEqual({ location, pin });
    expect(shownAddress(address)).toBe('s3://bucket/a b/ü%20&=+.jsonl');
    // Nobody can name a version in a request.
    expect(parseObjectUrl(address)).toHaveProperty('problem');
  }
  expect(parseAddress(formatLocation(location))).toEqual({ location, pin: null });
  expect(parseAddress('files/file-abc')).toBeNull();
});
