import { createServer } from 'node:http';
import type { ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import { expect, test } from 'vitest';
import { createRemoteService } from '../../src/runtimes/remote/index.ts';
import { startMetadataService } from '../simulators/metadata-service/server.ts';
import type { Fault, Operation } from '../simulators/metadata-service/server.ts';

const NEVER = new AbortController().signal;

function connect(url: string) {
  const remote = createRemoteService({
    url,
    apiKey: undefined,
    engineUrls: [],
    connectTimeout: 1_000,
    answerTimeout: 300,
    fileTimeout: 300,
  });
  return Object.assign(remote, { [Symbol.asyncDispose]: () => remote.close() });
}

async function* bytesOf(...texts: string[]) {
  for (const text of texts) yield Buffer.from(text);
}

const ORDER = {
  endpoint: '/v1/chat/completions',
  completion_window: '24h',
  metadata: { 'sluice.job_id': 'job_1' },
  aibrix: {},
};
const LINE = '{"custom_id":"a"}\n';

async function makeBatch(service: ReturnType<typeof connect>) {
  const input = { name: 'job_1.jsonl', content: bytesOf(LINE), bytes: LINE.length };
  const file = await service.upload(input, NEVER);
  return service.create({ ...ORDER, input_file_id: file }, 'key', NEVER);
}

const FAULTS: [string, Fault, object][] = [
  [
    '429',
    { kind: 'status', status: 429, retryAfter: '3' },
    { code: 'remote.busy', retryAfterMs: 3_000 },
  ],
  ['408', { kind: 'status', status: 408 }, { code: 'remote.unclear' }],
  ['503', { kind: 'status', status: 503 }, { code: 'remote.unclear' }],
  ['401', { kind: 'status', status: 401 }, { code: 'remote.refused', status: 401 }],
  ['a connection that breaks', { kind: 'reset' }, { code: 'remote.unclear' }],
  ['half an answer', { kind: 'cut' }, { code: 'remote.unclear' }],
  ['no answer', { kind: 'silence' }, { code: 'remote.unclear' }],
];
test.for(FAULTS)('%s is told as what it means for whoever asks', async ([, fault, error]) => {
  await using simulator = await startMetadataService();
  await using service = connect(simulator.url);
  const { id } = await makeBatch(service);
  const asks: [Operation, () => Promise<unknown>][] = [
    ['create', () => service.create({ ...ORDER, input_file_id: 'x' }, 'key', NEVER)],
    ['batches', () => service.findBatch('job_1', 0, NEVER)],
    ['batch', () => service.look(id, NEVER)],
    ['cancel', () => service.cancel(id, NEVER)],
    ['files', () => service.findInput({ name: 'x', bytes: 1 }, NEVER)],
    ['file', () => service.open([...simulator.files.keys()][0] ?? '', NEVER)],
  ];
  for (const [operation, ask] of asks) {
    simulator.fail(operation, fault);
    const said = await ask().catch((failure: unknown) => failure);
    expect({ operation, said }).toMatchObject({ operation, said: error });
  }
});

test('without a connection nothing was asked', async () => {
  await using service = connect('http://127.0.0.1:9');
  await expect(service.look('x', NEVER)).rejects.toMatchObject({ code: 'remote.unsent' });
});

test('what is missing, and what cannot be cancelled any more, is no error', async () => {
  await using simulator = await startMetadataService();
  await using service = connect(simulator.url);
  expect(await service.look('x', NEVER)).toBeNull();
  expect(await service.findBatch('job_2', 0, NEVER)).toBeNull();
  expect(await service.findInput({ name: 'x', bytes: 1 }, NEVER)).toBeNull();
  const { id } = await makeBatch(service);
  simulator.run(id);
  await service.cancel(id, NEVER);
  expect((await service.look(id, NEVER))?.end).toMatchObject({ status: 'completed', error: null });
});

test('a batch is found by its metadata behind pages of newer ones, and not among those of long before', async () => {
  await using simulator = await startMetadataService();
  await using service = connect(simulator.url);
  const { id } = await makeBatch(service);
  const [old] = simulator.batches.values();
  if (old === undefined) throw new Error('there is no batch');
  for (let n = 0; n < 250; n += 1) {
    simulator.batches.set(`other-${n}`, { ...old, id: `other-${n}`, body: { metadata: {} } });
  }
  expect((await service.findBatch('job_1', Date.now(), NEVER))?.id).toBe(id);
  const pages = simulator.calls.filter(({ operation }) => operation === 'batches');
  expect(pages).toHaveLength(3);
  old.createdAt -= 3_600;
  for (const batch of simulator.batches.values())
    if (batch !== old) batch.createdAt = old.createdAt;
  expect(await service.findBatch('job_3', Date.now(), NEVER)).toBeNull();
  expect(simulator.calls.filter(({ operation }) => operation === 'batches')).toHaveLength(4);
});

test('a file that comes short, or stops coming, is not taken for whole', async () => {
  await using simulator = await startMetadataService();
  await using service = connect(simulator.url);
  const { id } = await makeBatch(service);
  simulator.run(id);
  const file = [...simulator.batches.values()][0]?.output ?? '';
  const whole = await (await service.open(file, NEVER)).toArray();
  expect(Buffer.concat(whole as Buffer[]).toString()).toContain('answer to a');
  simulator.fail('content', { kind: 'cut' });
  const short = await service.open(file, NEVER);
  await expect(short.toArray()).rejects.toMatchObject({ code: 'remote.unclear' });
  simulator.fail('content', { kind: 'silence' });
  await expect(service.open(file, NEVER)).rejects.toMatchObject({ code: 'remote.unclear' });
});

test('a file that stands still in its midst is given up', async () => {
  const open = new Set<ServerResponse>();
  const server = createServer((req, res) => {
    if (!req.url?.endsWith('/content')) return res.end('{"id":"f","bytes":100}');
    open.add(res);
    return res.write('{"half');
  }).listen(0, '127.0.0.1');
  await new Promise((resolve) => server.once('listening', resolve));
  const { port } = server.address() as AddressInfo; // it listens on TCP
  await using service = connect(`http://127.0.0.1:${port}`);
  try {
    const stream = await service.open('f', NEVER);
    await expect(stream.toArray()).rejects.toMatchObject({ code: 'remote.unclear' });
  } finally {
    for (const res of open) res.destroy();
    server.close();
  }
});

test('an input of unknown length is sent as it comes; one that breaks is nobody else’s fault', async () => {
  await using simulator = await startMetadataService();
  await using service = connect(simulator.url);
  const name = 'job_1.jsonl';
  await service.upload({ name, content: bytesOf(LINE, LINE), bytes: null }, NEVER);
  expect([...simulator.files.values()][0]).toMatchObject({ filename: name, purpose: 'batch' });
  expect([...simulator.files.values()][0]?.content.toString()).toBe(LINE + LINE);
  async function* broken() {
    yield Buffer.from(LINE);
    throw new Error('the disk is gone');
  }
  const sending = service.upload({ name, content: broken(), bytes: null }, NEVER);
  await expect(sending).rejects.toThrow('the disk is gone');
  expect(simulator.files.size).toBe(1);
});
