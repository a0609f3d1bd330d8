import { createReadStream, existsSync, mkdirSync } from 'node:fs';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { EXIT_BUSY, main } from '../../src/main/commands.ts';
import { startVllmProcess } from './vllm-process.ts';

/**
 * `npm run demo`: `sluice run` with defaults, so that one command shows the whole pipeline. Without `--engine` it
 * starts the simulated vLLM that the tests use, in a process of its own; everything else is the product.
 */
const { values } = parseArgs({
  options: {
    input: { type: 'string', short: 'i' },
    output: { type: 'string', short: 'o' },
    engine: { type: 'string', short: 'e' },
    force: { type: 'boolean', short: 'f' },
    json: { type: 'boolean' },
    help: { type: 'boolean', short: 'h' },
  },
});

if (values.help === true) {
  console.log('npm run demo -- [--input FILE] [--output FILE] [--engine URL] [--force] [--json]');
} else {
  await demo();
}
process.stdout.write('', () => process.exit());

async function demo(): Promise<void> {
  const example = fileURLToPath(new URL('example.jsonl', import.meta.url));
  const input = values.input ?? example;
  if (values.engine !== undefined) {
    await runTo(['--input', input, '--engine', values.engine]);
    return;
  }
  console.error(
    'No --engine given: a simulated vLLM answers, as fast as an 8B model on one H100 would.',
  );
  await using simulator = await startVllmProcess({
    flags: ['--profile', 'h100-8b', '--any-model', ...(await modelsOf(input))],
  });
  let done = false;
  void simulator.exited.then(() => {
    if (done) return;
    console.error(
      'The simulated vLLM has ended: start the demo again, it goes on where it stopped.',
    );
    process.kill(process.pid, 'SIGTERM');
  });
  await runTo(['--input', input, '--engine', simulator.url, '--note', 'simulated vLLM']);
  done = true;
}

/** Runs into `--output`, or into the first default name that no other demo is writing at this moment. */
async function runTo(args: string[]): Promise<void> {
  const json = values.json === true ? ['--json'] : [];
  // The default names are the demo's own.
  const force = values.force === true || values.output === undefined ? ['--force'] : [];
  for (let n = 1; n < 100; n += 1) {
    const output = values.output ?? defaultOutput(n);
    await main(['node', 'sluice', 'run', ...args, '--output', output, ...json, ...force]);
    if (process.exitCode !== EXIT_BUSY || values.output !== undefined) return;
    process.exitCode = 0;
  }
}

function defaultOutput(n: number): string {
  mkdirSync('.sluice', { recursive: true });
  return join('.sluice', `demo-output${n === 1 ? '' : `-${n}`}.jsonl`);
}

/** Flags that have the simulator serve the models of a file; what is wrong with the file is for `run` to say. */
async function modelsOf(input: string): Promise<string[]> {
  const models = new Set<string>();
  if (!existsSync(input)) return [];
  for await (const line of createInterface({ input: createReadStream(input) })) {
    const model = /"model"\s*:\s*"([^"\\]+)"/.exec(line)?.[1];
    if (model !== undefined) models.add(model);
  }
  return [...models].flatMap((model) => ['--model', model]);
}
