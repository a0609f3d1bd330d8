import { spawn } from 'node:child_process';
import { fileURLToPath } from 'node:url';

/** `npm run test:chaos -- [--long] [vitest's own options]`: `--long` kills for minutes instead of seconds. */
const args = process.argv.slice(2);
const long = args.includes('--long');
const vitest = fileURLToPath(new URL('../../node_modules/vitest/vitest.mjs', import.meta.url));
const options = args.filter((arg) => arg !== '--long');
if (long) options.push('--testTimeout=900000');
const child = spawn(process.execPath, [vitest, 'run', '--project', 'chaos', ...options], {
  stdio: 'inherit',
  env: { ...process.env, ...(long ? { CHAOS_LONG: '1' } : {}) },
});
child.on('exit', (code) => {
  process.exitCode = code ?? 1;
});
