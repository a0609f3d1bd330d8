import { benchDispatch } from './dispatch.ts';

/** `npm run bench -- NAME [--json]`: measures, prints, and never fails for what it measured. */
const BENCHES: Record<string, (options: { json: boolean }) => Promise<void>> = {
  dispatch: benchDispatch,
};

const [name = '', ...flags] = process.argv.slice(2);
const bench = BENCHES[name];
if (bench === undefined) {
  console.error(`npm run bench -- NAME [--json], NAME one of: ${Object.keys(BENCHES).join(', ')}`);
  process.exitCode = 1;
} else {
  await bench({ json: flags.includes('--json') });
}
