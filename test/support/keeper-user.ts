/**
 * A process that uses the embedded Redis of a folder until it is told to stop or is killed:
 * `node keeper-user.ts DATA_DIR [always|everysec]`. Prints one JSON object a line.
 */
import { openEmbeddedRedis } from '../../src/main/embedded-redis.ts';

function print(event: object): void {
  console.log(JSON.stringify(event));
}

const [, , dataDir = '', fsync] = process.argv;
try {
  const redis = await openEmbeddedRedis({
    dataDir,
    fsync: fsync === 'everysec' ? 'everysec' : 'always',
    log: (fields, message) => print({ message, ...fields }),
  });
  redis.onFailure((error) => print({ failure: error.message }));
  print({ open: redis.socket });
  process.stdin.once('data', () => {
    process.stdin.destroy();
    void redis.close().then(() => print({ closed: true }));
  });
} catch (error) {
  print({ refused: error instanceof Error ? error.message : String(error) });
}
