import { checkNode } from './node-version.ts';

// The program of a Job's pod: `sluice batch-worker` under a name of its own.
const complaint = checkNode(process.version);
if (complaint !== null) {
  console.error(complaint);
  process.exit(1);
}
// Nothing else is loaded before: an older Node would fail on it in a way that explains nothing.
const { main } = await import('./commands.ts');
const [node = '', program = '', ...flags] = process.argv;
await main([node, program, 'batch-worker', ...flags]);
// An engine's connection that cannot be ended must not keep a process that is done.
process.stdout.write('', () => process.exit());
