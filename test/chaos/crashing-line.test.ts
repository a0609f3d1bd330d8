import { createServer } from 'node:http';
import type { Server } from 'node:http';
import type { AddressInfo } from 'node:net';
import { afterAll, expect, test } from 'vitest';
import {
  createBatch,
  download,
  makeInput,
  parseLines,
  requestLine,
  say,
  untilFinal,
  upload,
} from '../support/batch.ts';
import { LONG } from '../support/chaos.ts';
import { requireNothingLeft, makeFolder, startSluice } from '../support/server.ts';
import { isAlive, logged, workerPids } from '../support/worker-processes.ts';

afterAll(requireNothingLeft);

const LATENCY_MS = 20;
const MODELS = JSON.stringify({ object: 'list', data: [{ id: 'sim-model', object: 'model' }] });
const ANSWER = JSON.stringify({ object: 'chat.completion', choices: [], usage: null });

/** An engine that calls `kill` where a request has this text, before it answers. */
async function startEngine(poison: string, kill: () => void) {
  const server: Server = createServer((request, response) => {
    const pieces: Buffer[] = [];
    request.on('data', (piece: Buffer) => pieces.push(piece));
    request.on('end', () => {
      if (Buffer.concat(pieces).includes(poison)) {
        kill();
        return;
      }
      const isAsked = request.method === 'POST';
      response.setHeader('content-type', 'application/json');
      setTimeout(() => response.end(isAsked ? ANSWER : MODELS), isAsked ? LATENCY_MS : 0);
    });
  });
  server.listen(0, '127.0.0.1');
  await new Promise((resolve) => server.once('listening', resolve));
  const { port } = server.address() as AddressInfo; // it listens on TCP
  return {
    url: `http://127.0.0.1:${port}`,
    async [Symbol.asyncDispose]() {
      server.closeAllConnections();
      await new Promise((resolve) => server.close(resolve));
    },
  };
}

// Ten deaths with the supervisor's patience between them: too long for every run.
test.runIf(LONG)(
  'a line that kills the process that sends it ends as worker_crashed, the rest is answered',
  async () => {
    let pids: () => number[] = () => [];
    await using engine = await startEngine('CRASH', () => {
      for (const pid of pids().filter(isAlive)) process.kill(pid, 'SIGKILL');
    });
    await using folder = await makeFolder();
    await using sluice = await startSluice({
      dataDir: folder.path,
      engines: [engine.url],
      env: { WORKER_PROCESSES: '1', CRASH_APART: '500ms' },
    });
    // The last that began to work: another one stands by.
    pids = () => workerPids(sluice).slice(-1);
    const input = makeInput(12);
    const lines = input.text.trim().split('\n');
    const messages = [{ role: 'user', content: 'CRASH' }];
    lines[0] = requestLine('line-0', JSON.stringify({ model: 'sim-model', messages }));
    const begun = performance.now();
    const { id } = await createBatch(sluice.url, await upload(sluice.url, `${lines.join('\n')}\n`));
    const batch = await untilFinal(sluice.url, id, 150_000);
    const deaths = logged(sluice, 'worker process ended', 'worker process does not stay up').length;
    const seconds = ((performance.now() - begun) / 1_000).toFixed(1);
    say(`worker processes died ${deaths} times in ${seconds} s`);
    expect(batch.request_counts).toEqual({ total: 12, completed: 11, failed: 1 });
    const [output, error] = await Promise.all(
      [batch.output_file_id, batch.error_file_id].map(async (each) =>
        parseLines(await download(sluice.url, each)),
      ),
    );
    expect(error).toMatchObject([{ custom_id: 'line-0', error: { code: 'worker_crashed' } }]);
    expect((output ?? []).map((line) => line.custom_id)).toEqual(input.customIds.slice(1));
  },
  180_000,
);
