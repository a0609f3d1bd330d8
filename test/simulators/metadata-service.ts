import { parseArgs } from 'node:util';
import { startMetadataService } from './metadata-service/server.ts';

/** A metadata service of its own: `node test/simulators/metadata-service.ts --port 8090 --after-ms 1000`. */
const { values } = parseArgs({
  options: {
    port: { type: 'string', default: '8090' },
    'after-ms': { type: 'string', default: '1000' },
  },
});
const service = await startMetadataService({
  port: Number(values.port),
  auto: { afterMs: Number(values['after-ms']) },
});
console.log(JSON.stringify({ listening: service.url }));
