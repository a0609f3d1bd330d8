import { readdir, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { gunzipSync } from 'node:zlib';
import type { Redis } from 'ioredis';

/** Where any of the words stands: keys and values of a Redis, names and bytes of a folder's files. Sorted. */
export interface Scan {
  redis(words: readonly string[]): Promise<string[]>;
  folder(words: readonly string[]): Promise<string[]>;
}

export function scanOf(redis: Redis, folder: string): Scan {
  return {
    async redis(words) {
      const found: string[] = [];
      for (const key of await redis.keys('*')) {
        const texts = [key, ...(await valuesOf(redis, key)).map(readable)];
        if (texts.some((text) => words.some((word) => text.includes(word)))) found.push(key);
      }
      return found.toSorted();
    },
    async folder(words) {
      const entries = await readdir(folder, { recursive: true, withFileTypes: true });
      const files = entries.filter((entry) => entry.isFile());
      const found = files.map(async ({ parentPath, name }) => {
        const path = join(parentPath, name);
        const text = `${path}\n${await readFile(path, 'latin1')}`;
        return words.some((word) => text.includes(word)) ? path.slice(folder.length + 1) : '';
      });
      return (await Promise.all(found)).filter((path) => path !== '').toSorted();
    },
  };
}

async function valuesOf(redis: Redis, key: string): Promise<Buffer[]> {
  const type = await redis.type(key);
  switch (type) {
    case 'string':
      return [(await redis.getBuffer(key)) ?? Buffer.alloc(0)];
    case 'hash':
      return Object.entries(await redis.hgetallBuffer(key)).flatMap(([name, value]) => [
        Buffer.from(name),
        value,
      ]);
    case 'list':
      return redis.lrangeBuffer(key, 0, -1);
    case 'set':
      return redis.smembersBuffer(key);
    case 'zset':
      return redis.zrangeBuffer(key, '0', '-1');
    case 'stream':
      return (await redis.xrangeBuffer(key, '-', '+')).flatMap(([id, fields]) => [id, ...fields]);
    default:
      // Gone meanwhile, or a kind that nobody knows here.
      if (type === 'none') return [];
      throw new Error(`${key} is a ${type}`);
  }
}

/** Kept answers are compressed. */
function readable(value: Buffer): string {
  const isZipped = value[0] === 0x1f && value[1] === 0x8b;
  return (isZipped ? gunzipSync(value) : value).toString('latin1');
}
