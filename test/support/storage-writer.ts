import { writeSync } from 'node:fs';
import { createStorage } from '../../src/storage/index.ts';
import './localhost-dns.ts';

/**
 * A process that writes an object and never ends: `node storage-writer.ts <settings as JSON> <key> put|concat`.
 * Says `writing` once some mebibytes of it were taken.
 */
const [settings = '{}', key = '', method = 'put'] = process.argv.slice(2);
const storage = await createStorage(JSON.parse(settings));

async function* endless(): AsyncGenerator<Buffer> {
  const chunk = Buffer.alloc(1024 * 1024, 'x');
  for (let n = 0; ; n += 1) {
    if (n === 8) console.log('writing');
    // the first mebibytes at once, then slowly: the test kills us in between
    if (n > 8) await new Promise((resume) => setTimeout(resume, 100));
    yield chunk;
  }
}

/** Joins parts, and stands still with the first bytes of them. */
async function join(): Promise<void> {
  const parts = ['parts/1', 'parts/2'];
  for (const part of parts) await storage.put(part, [Buffer.alloc(6 * 2 ** 20, part)]);
  function see(): void {
    writeSync(1, 'writing\n');
    Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0);
  }
  await storage.concat(parts, key, { inspect: () => ({ see, end: () => undefined }) });
}

await (method === 'concat' ? join() : storage.put(key, endless()));
