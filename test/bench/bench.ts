import { parseArgs } from 'node:util';
import { benchDispatch } from './dispatch.ts';
import { benchFairness } from './fairness.ts';
import { benchLatency } from './latency.ts';
import { benchLease } from './lease.ts';
import { benchLimits } from './limits.ts';
import { benchRecovery } from './recovery.ts';
import { benchScale } from './scale.ts';
import { benchStorage } from './storage.ts';
import { benchUploads } from './uploads.ts';
import { benchValidate } from './validate.ts';
import { benchWindow } from './window.ts';

interface BenchOptions {
  json: boolean;
  /** `validate` only: how many custom_ids to check instead of an input. */
  ids: number | null;
  /** `uploads` only: GB (10^9 bytes) to send. */
  gigabytes: number;
  /** `scale` and `storage`: how many lines their jobs have; null: as many as they take by themselves. */
  lines: number | null;
  /** `storage` only: size of the file that is sent, such as 5GiB. */
  upload: string;
  /** `lease` only: how many jobs lease a machine at the same time. */
  jobs: number;
  /** `recovery` only: how often a worker process is killed. */
  kills: number;
  /** `window` only: names or files of the simulator's profiles, instead of its own three. */
  profiles: readonly string[];
}

/** `npm run bench -- NAME [--json]`: measures, prints, and never fails for what it measured. */
const BENCHES: Record<string, (options: BenchOptions) => Promise<void>> = {
  dispatch: benchDispatch,
  fairness: benchFairness,
  latency: benchLatency,
  lease: benchLease,
  limits: benchLimits,
  recovery: benchRecovery,
  scale: ({ json, lines }) => benchScale({ json, lines: lines ?? 5_000_000 }),
  storage: ({ json, lines, upload }) => benchStorage({ json, lines: lines ?? 50_000, upload }),
  uploads: benchUploads,
  validate: benchValidate,
  window: benchWindow,
};

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    json: { type: 'boolean', default: false },
    ids: { type: 'string' },
    gigabytes: { type: 'string', default: '5' },
    lines: { type: 'string' },
    upload: { type: 'string', default: '512MiB' },
    jobs: { type: 'string', default: '50' },
    kills: { type: 'string', default: '100' },
    profile: { type: 'string', multiple: true, default: [] },
  },
});
const bench = BENCHES[positionals[0] ?? ''];
if (bench === undefined) {
  const names = Object.keys(BENCHES).join(', ');
  console.error(
    `npm run bench -- NAME [--json] [--ids COUNT] [--gigabytes GB] [--lines N] [--upload SIZE] [--jobs N] [--kills N] [--profile FILE], NAME one of: ${names}`,
  );
  process.exitCode = 1;
} else {
  await bench({
    json: values.json,
    ids: values.ids === undefined ? null : Number(values.ids),
    gigabytes: Number(values.gigabytes),
    lines: values.lines === undefined ? null : Number(values.lines),
    upload: values.upload,
    jobs: Number(values.jobs),
    kills: Number(values.kills),
    profiles: values.profile,
  });
}
