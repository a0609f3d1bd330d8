import { createStorage } from '../../src/storage/index.ts';
import './localhost-dns.ts';

/**
 * A process that puts an object which never ends: `node storage-writer.ts <settings as JSON> <key>`.
 * Says `writing` once some mebibytes of it were taken.
 */
const [settings = '{}', key = ''] = process.argv.slice(2);
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

await storage.put(key, endless());
