import { checkNode } from './node-version.ts';

const complaint = checkNode(process.version);
if (complaint !== null) {
  console.error(complaint);
  process.exit(1);
}
// Nothing else is loaded before: an older Node would fail on it in a way that explains nothing.
const { main } = await import('./commands.ts');
await main(process.argv);
// A connection that cannot be ended, as one to a Redis that is gone, must not keep a process that is done.
process.stdout.write('', () => process.exit());
