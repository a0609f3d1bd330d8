import { createReadStream, existsSync, mkdirSync } from 'node:fs';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { EXIT_BUSY, main } from '../../src/main/commands.ts';
import { MACHINE_PROVIDERS } from '../../src/domain/provision.ts';
import { startVllmProcess } from './vllm-process.ts';

/**
 * `npm run demo`: `sluice run` with defaults, so that one command shows the whole pipeline. Without `--engine` it
 * starts the simulated vLLM that the tests use, in a process of its own; everything else is the product. With
 * `--provider` it is a server that leases a machine for the engine.
 */
const { values } = parseArgs({
  options: {
    input: { type: 'string', short: 'i' },
    output: { type: 'string', short: 'o' },
    engine: { type: 'string', short: 'e' },
    provider: { type: 'string', short: 'p' },
    force: { type: 'boolean', short: 'f' },
    json: { type: 'boolean' },
    help: { type: 'boolean', short: 'h' },
  },
});

const EXAMPLE = fileURLToPath(new URL('example.jsonl', import.meta.url));

if (values.help === true) {
  console.log(
    `npm run demo -- [--input FILE] [--output FILE] [--engine URL | --provider NAME] [--force] [--json]

  --provider runpod|lambdaCloud   a Sluice server leases a machine of that provider, simulated, runs the
                                  batch on it and gives it back (Linux, root)
  --engine URL                    an engine that is there already, instead of a simulated one`,
  );
} else if (values.provider === undefined) {
  await demo();
} else {
  await leaseDemo(values.provider);
}
process.stdout.write('', () => process.exit());

async function demo(): Promise<void> {
  const input = values.input ?? EXAMPLE;
  if (values.engine !== undefined) {
    await runTo(['--input', input, '--engine', values.engine]);
    return;
  }
  console.error(
    'No --engine given: a simulated vLLM answers, as fast as an 8B model on one H100 would.',
  );
  const named = (await modelsOf(input)).flatMap((model) => ['--model', model]);
  await using simulator = await startVllmProcess({
    flags: ['--profile', 'h100-8b', '--any-model', ...named],
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

/** `--provider`: everything is the product but the cloud, its machines and the engine on them. */
async function leaseDemo(name: string): Promise<void> {
  const provider = MACHINE_PROVIDERS.find((each) => each === name);
  const input = values.input ?? EXAMPLE;
  const models = await modelsOf(input);
  const [model] = models;
  if (provider === undefined || values.engine !== undefined) {
    console.error(`--provider must be one of ${MACHINE_PROVIDERS.join(', ')}, without --engine.`);
    process.exitCode = 1;
  } else if (model === undefined || models.length > 1) {
    console.error(`A machine serves one model, and ${input} names ${models.length}.`);
    process.exitCode = 1;
  } else {
    const { demoLease } = await import('./demo-lease.ts');
    const output = values.output ?? defaultOutput(1);
    await demoLease({ provider, input, model, output, json: values.json === true });
  }
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

/** The models that the lines of a file name; what is wrong with the file is for others to say. */
async function modelsOf(input: string): Promise<string[]> {
  const models = new Set<string>();
  if (!existsSync(input)) return [];
  for await (const line of createInterface({ input: createReadStream(input) })) {
    const model = /"model"\s*:\s*"([^"\\]+)"/.exec(line)?.[1];
    if (model !== undefined) models.add(model);
  }
  return [...models];
}
