import * as v from 'valibot';
import { duration, inMs, text } from './kinds.ts';

const MOST_DAYS = 36_500;

/** A time that may be longer than a timer's, from `minMs` on. */
function age(minMs: number) {
  const message = `must be a time of at least ${minMs / 1_000} s, such as 90s, 15m, 24h or 30d`;
  return v.pipe(
    text,
    v.regex(/^\d+[smhd]$/, message),
    v.transform(inMs),
    v.minValue(minMs, message),
    v.maxValue(MOST_DAYS * 86_400_000, message),
  );
}

/** How long something stays: null for ever. */
function retention() {
  const message = `must be never, or a time of at least a minute such as 90m, 24h or 30d`;
  return v.pipe(
    text,
    v.regex(/^(?:never|\d+[smhd])$/, message),
    v.transform((value) => (value === 'never' ? null : inMs(value))),
    v.nullable(
      v.pipe(v.number(), v.minValue(60_000, message), v.maxValue(MOST_DAYS * 86_400_000, message)),
    ),
  );
}

const HOUR_MS = 3_600_000;

/** How long things stay that are over; `sluice gc --dry-run` shows what would go. */
export const RETENTION_SETTINGS = {
  segmentKeep: {
    doc: 'How long the answers of a job that is over stay in storage beside its files. Those of a job whose files could not be written stay as long as the job.',
    env: 'SEGMENT_KEEP',
    isRare: true,
    default: '24h',
    schema: age(0),
  },
  fileRetention: {
    doc: 'How long files stay that have no expires_after (output_expires_after) of their own, and that no unfinished job needs.',
    env: 'FILE_RETENTION',
    default: 'never',
    schema: retention(),
  },
  jobRetention: {
    doc: 'How long the record of a job that is over stays, with its history, provisions and webhook attempts; its files stay as long as files do.',
    env: 'JOB_RETENTION',
    isRare: true,
    default: 'never',
    schema: retention(),
  },
  orphanAge: {
    doc: 'How old objects in storage and unfinished writes must be that no record names, for them to be removed; at least 7h, longer than the longest request.',
    env: 'ORPHAN_AGE',
    isRare: true,
    // Whoever has written an object has recorded it by then, or never will.
    default: '24h',
    // An upload may take six hours, and what it writes has no record before its end.
    schema: age(7 * HOUR_MS),
  },
  gcInterval: {
    doc: 'How often the sweeper removes what is over and what crashes left in storage.',
    env: 'GC_INTERVAL',
    isRare: true,
    default: '1h',
    schema: duration(1_000),
  },
} as const;
