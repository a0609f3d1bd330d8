import * as v from 'valibot';
import { OUTCOMES, QUEUE_NAMES } from '../../../src/domain/job.ts';
import { createMetrics } from '../../../src/observability/metrics.ts';

const sample = v.looseObject({
  name: v.string(),
  type: v.string(),
  values: v.array(v.looseObject({ labels: v.record(v.string(), v.unknown()) })),
});

/** Labels that Prometheus and histograms add. */
const ADDED = ['instance', 'job', 'le'];

export interface Exported {
  /** Names as they are asked for, histograms by their three series. */
  readonly labels: ReadonlyMap<string, ReadonlySet<string>>;
}

/** Every metric that a process of Sluice exports, with its labels, after each of them has been used once. */
export async function readExported(): Promise<Exported> {
  const metrics = createMetrics();
  metrics.httpSeconds.observe({ route: '/v1/files', method: 'GET', status: '200' }, 1);
  metrics.attemptSeconds.observe({ queue: 'dispatch', result: 'done' }, 1);
  metrics.answered('output', { inputTokens: 1, outputTokens: 1 });
  metrics.retries.inc({ reason: '429' });
  metrics.jobsFinished.inc({ outcome: 'completed' });
  metrics.queued.set({ queue: 'dispatch', state: 'waiting' }, 1);
  metrics.machines.set({ provider: 'runpod', state: 'serving' }, 1);
  metrics.leakedMachines.set({ provider: 'runpod' }, 1);
  const labels = new Map<string, Set<string>>([['up', new Set(ADDED)]]);
  for (const { name, type, values } of v.parse(v.array(sample), await metrics.snapshot())) {
    const own = new Set([...ADDED, ...values.flatMap((value) => Object.keys(value.labels))]);
    const ends = type === 'histogram' ? ['_bucket', '_sum', '_count'] : [''];
    for (const end of ends) labels.set(`${name}${end}`, own);
  }
  return { labels };
}

/** Values that a label may have, where these are ours to say. */
const VALUES: Readonly<Record<string, readonly string[]>> = {
  queue: QUEUE_NAMES,
  outcome: OUTCOMES,
  kind: ['output', 'error', 'input'],
  state: ['waiting', 'prioritized', 'delayed', 'active'],
  result: ['done', 'again', 'retry', 'stop', 'fail'],
};

/** PromQL's own words, which stand where names do. */
const WORDS =
  /^(?:sum|max|min|avg|count|rate|increase|histogram_quantile|by|without|on|and|or|unless|ignoring|group_left)$/;

/** What an expression asks for and nobody exports: metrics, their labels, values of labels. */
export function unknownOf(expr: string, { labels }: Exported): string[] {
  const faults: string[] = [];
  const used = new Set<string>();
  const bare = expr.replaceAll(
    /([a-z_:][a-z0-9_:]*)\{([^}]*)\}/g,
    (_all, name: string, inner: string) => {
      used.add(name);
      for (const [, label = '', , text = ''] of inner.matchAll(
        /(\w+)\s*(=~|!=|!~|=)\s*"([^"]*)"/g,
      )) {
        if (labels.get(name)?.has(label) !== true) faults.push(`${name} has no label ${label}`);
        const values = VALUES[label];
        if (values === undefined || text.includes('*')) continue;
        for (const each of text.split('|')) {
          if (!values.includes(each)) faults.push(`${label} is never ${each}`);
        }
      }
      return name;
    },
  );
  const grouped = bare.replaceAll(/\b(?:by|on|without)\s*\(([^)]*)\)/g, (_all, inner: string) => {
    for (const label of inner.split(',').map((each) => each.trim())) used.add(`by:${label}`);
    return '';
  });
  for (const [name] of grouped.matchAll(/[a-z_:][a-z0-9_:]*/g)) {
    if (!WORDS.test(name) && !/^\d*[smhd]$/.test(name)) used.add(name);
  }
  const names = [...used].filter((name) => !name.startsWith('by:'));
  const own = new Set(names.flatMap((name) => [...(labels.get(name) ?? [])]));
  for (const name of names) if (!labels.has(name)) faults.push(`nobody exports ${name}`);
  for (const by of [...used].filter((name) => name.startsWith('by:'))) {
    if (!own.has(by.slice(3))) faults.push(`no label ${by.slice(3)} to group by`);
  }
  return faults;
}
