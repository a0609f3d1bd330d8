import { parseArgs } from 'node:util';
import { benchDispatch } from './dispatch.ts';
import { benchUploads } from './uploads.ts';
import { benchValidate } from './validate.ts';

interface BenchOptions {
  json: boolean;
  /** `validate` only: how many custom_ids to check instead of an input. */
  ids: number | null;
  /** `uploads` only: GB (10^9 bytes) to send. */
  gigabytes: number;
}

/** `npm run bench -- NAME [--json]`: measures, prints, and never fails for what it measured. */
const BENCHES: Record<string, (options: BenchOptions) => Promise<void>> = {
  dispatch: benchDispatch,
  uploads: benchUploads,
  validate: benchValidate,
};

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    json: { type: 'boolean', default: false },
    ids: { type: 'string' },
    gigabytes: { type: 'string', default: '5' },
  },
});
const bench = BENCHES[positionals[0] ?? ''];
if (bench === undefined) {
  const names = Object.keys(BENCHES).join(', ');
  console.error(
    `npm run bench -- NAME [--json] [--ids COUNT] [--gigabytes GB], NAME one of: ${names}`,
  );
  process.exitCode = 1;
} else {
  await bench({
    json: values.json,
    ids: values.ids === undefined ? null : Number(values.ids),
    gigabytes: Number(values.gigabytes),
  });
}
