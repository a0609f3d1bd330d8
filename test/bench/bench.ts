import { parseArgs } from 'node:util';
import { benchDispatch } from './dispatch.ts';
import { benchFairness } from './fairness.ts';
import { benchLatency } from './latency.ts';
import { benchLimits } from './limits.ts';
import { benchRecovery } from './recovery.ts';
import { benchScale } from './scale.ts';
import { benchUploads } from './uploads.ts';
import { benchValidate } from './validate.ts';
import { benchWindow } from './window.ts';

interface BenchOptions {
  json: boolean;
  /** `validate` only: how many custom_ids to check instead of an input. */
  ids: number | null;
  /** `uploads` only: GB (10^9 bytes) to send. */
  gigabytes: number;
  /** `scale` only: how many lines its job has. */
  lines: number;
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
  limits: benchLimits,
  recovery: benchRecovery,
  scale: benchScale,
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
    lines: { type: 'string', default: '5000000' },
    kills: { type: 'string', default: '100' },
    profile: { type: 'string', multiple: true, default: [] },
  },
});
const bench = BENCHES[positionals[0] ?? ''];
if (bench === undefined) {
  const names = Object.keys(BENCHES).join(', ');
  console.error(
    `npm run bench -- NAME [--json] [--ids COUNT] [--gigabytes GB] [--lines N] [--kills N] [--profile FILE], NAME one of: ${names}`,
  );
  process.exitCode = 1;
} else {
  await bench({
    json: values.json,
    ids: values.ids === undefined ? null : Number(values.ids),
    gigabytes: Number(values.gigabytes),
    lines: Number(values.lines),
    kills: Number(values.kills),
    profiles: values.profile,
  });
}
