import { afterAll, expect, test } from 'vitest';
import {
  answeredAgain,
  createJob,
  createTemplate,
  expectJobExact,
  leaseInput,
  untilJob,
  untilMachine,
  untilNoMachine,
  untilStatus,
} from '../support/leases.ts';
import { startLeasingSite } from '../support/leasing-site.ts';
import { ANY_KEYS, startS3Server } from '../support/s3-server.ts';
import { requireNothingLeft } from '../support/server.ts';
import { until } from '../support/until.ts';

afterAll(requireNothingLeft);

/** Two shards' worth. */
const LINES = 2_000;
const CONTROL_QUEUES = ['planning', 'provisioning', 'submission', 'release'];
/** Connections to sshd, one a process that has something to do with the machine. */
const COUNT_SSH = `ss -Htn state established '( sport = :22 )' | wc -l`;

test('one process leases and two others send, each by a tunnel of its own and with a folder of its own', async () => {
  await using s3 = await startS3Server();
  const env = {
    STORAGE_TYPE: 'S3',
    S3_BUCKET: await s3.createBucket(),
    S3_ENDPOINT: s3.url,
    AWS_ACCESS_KEY_ID: ANY_KEYS.accessKeyId,
    AWS_SECRET_ACCESS_KEY: ANY_KEYS.secretAccessKey,
  };
  const knobs = { machine: { engine: { set: { latency_ms: 100 } } } };
  await using site = await startLeasingSite({
    cloud: { knobs },
    env,
    server: { roles: ['api', 'sweeper'] },
  });
  const { cloud, folder, url } = site;
  const roles = ['worker'];
  await site.start({ roles, queues: CONTROL_QUEUES, dataDir: `${folder.path}/control` });
  const senders = await Promise.all(
    ['one', 'two'].map((name) =>
      site.start({ roles, queues: ['dispatch'], dataDir: `${folder.path}/${name}` }),
    ),
  );

  const template = await createTemplate(url, cloud.provider);
  const input = leaseInput(LINES);
  const id = await createJob(url, template, input);
  const machine = await untilMachine(cloud, ({ phase }) => phase === 'up');
  await untilJob(url, id, ({ status }) => status === 'in_progress', { what: 'in_progress' });
  const three = async (): Promise<boolean> => {
    const answer = await cloud.control.act(machine, 'exec', { command: COUNT_SSH });
    return Number((answer as { stdout: string }).stdout) >= 1 + senders.length;
  };
  await until(three, { everyMs: 100, what: 'a tunnel of each sender beside the one that looks' });

  // The job outlives one of them, and whoever leased the machine gives it back.
  await senders[0]?.stop();
  const job = await untilStatus(url, id, 'completed', 60_000);
  const { error } = await expectJobExact(url, job, input);
  expect(error).toEqual([]);
  expect(await answeredAgain([cloud], input)).toEqual([]);
  await untilNoMachine(cloud);
  expect((await cloud.control.ledger()).totals).toMatchObject({ created: 1, created_twice: 0 });
}, 120_000);
