import { afterAll, expect, test } from 'vitest';
import {
  createBatch,
  download,
  expectExact,
  makeInput,
  requestLine,
  say,
  submit,
  untilFinal,
  upload,
} from '../support/batch.ts';
import { requireNothingLeft, makeFolder, startSluice } from '../support/server.ts';
import { startVllmProcess } from '../support/vllm-process.ts';

afterAll(requireNothingLeft);

test('the SDK with nothing but a base URL uploads, creates, polls and downloads', async () => {
  await using engine = await startVllmProcess({ flags: ['--profile', 'zero'] });
  await using folder = await makeFolder();
  await using sluice = await startSluice({ dataDir: folder.path, engines: [engine.url] });
  const input = makeInput(20);

  const begun = performance.now();
  const id = await submit(sluice.url, input);
  const batch = await untilFinal(sluice.url, id);
  const ms = performance.now() - begun;

  say(`20 lines from upload to completed: ${Math.round(ms)} ms`);
  expect(batch).toMatchObject({ status: 'completed', object: 'batch', model: 'sim-model' });
  const { error } = await expectExact(sluice.url, batch, input);
  expect(error).toEqual([]);
  expect(batch.error_file_id).toBeFalsy();
  expect(ms, 'ms from upload to completed').toBeLessThan(3_000);
  const { code } = await sluice.stop();
  expect(code).toBe(0);
});

test('the engine gets the bytes of the body, and the output file those of the answer', async () => {
  await using engine = await startVllmProcess({ flags: ['--profile', 'zero'] });
  await engine.setConfig({ keep_bodies: true });
  await using folder = await makeFolder();
  await using sluice = await startSluice({ dataDir: folder.path, engines: [engine.url] });
  const bodies = [
    // Integers above 2^53, keys twice, keys that look like indexes, spaces, escapes: none survives parse and stringify.
    '{"model":"sim-model","seed":9007199254740993,"messages":[{"role":"user","content":"big"}]}',
    '{"z":1,"model":"sim-model","a":2,"z":3,"messages":[{"role":"user","content":"twice"}]}',
    '{"10":1,"2":1,"messages":[{"content":"order","role":"user"}],"1":1,"model":"sim-model"}',
    '{ "model" : "sim-model" , "x":1.0e+2,"messages":[{"role":"user","content":"\\u00e9\\/ \\ud83d\\ude00"}]}',
    '{"model":"sim-model","messages":[{"role":"user","content":"ECHO: 𝕊𝕝𝕦𝕚𝕔𝕖 😀 日本語"}]}',
  ];
  const text = bodies.map((body, n) => requestLine(`raw-${n}`, body)).join('\n');

  const { id } = await createBatch(sluice.url, await upload(sluice.url, text));
  const batch = await untilFinal(sluice.url, id);

  expect(batch.request_counts).toEqual({ total: 5, completed: 5, failed: 0 });
  const asked = await engine.requests({ bodies: true });
  const received = asked.map(({ body }) => Buffer.from(body ?? '', 'base64').toString());
  expect(received.toSorted()).toEqual(bodies.toSorted());
  const output = (await download(sluice.url, batch.output_file_id)).trimEnd().split('\n');
  for (const [n, body] of bodies.entries()) {
    const direct = await fetch(`${engine.url}/v1/chat/completions`, {
      method: 'POST',
      headers: { 'content-type': 'application/json' },
      body,
    });
    // The simulator answers a body always alike, so that its own bytes can be looked for.
    expect(output[n], `line ${n}`).toContain(`"body":${await direct.text()}`);
    expect(output[n]).toContain(`"custom_id":"raw-${n}"`);
  }
});
