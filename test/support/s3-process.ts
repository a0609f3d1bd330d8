import { startFauxqs } from 'fauxqs';

/** An S3 server as a process: says where it listens in its first line, and ends with its stdin. */
const server = await startFauxqs({ port: 0, logger: false });
console.log(JSON.stringify({ listening: `http://127.0.0.1:${server.port}` }));
process.stdin.resume().on('end', () => process.exit());
