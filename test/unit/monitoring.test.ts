import { expect, test } from 'vitest';
import * as v from 'valibot';
import { parse } from 'yaml';
import { readExported, unknownOf } from '../support/deploy/exported.ts';
import { readManifests, readText } from '../support/deploy/manifests.ts';

const exported = await readExported();

const dashboard = v.pipe(
  v.string(),
  v.parseJson(),
  v.looseObject({
    uid: v.string(),
    panels: v.array(
      v.looseObject({
        id: v.number(),
        title: v.string(),
        type: v.string(),
        gridPos: v.object({ x: v.number(), y: v.number(), w: v.number(), h: v.number() }),
        targets: v.optional(v.array(v.looseObject({ expr: v.string() })), []),
      }),
    ),
  }),
);
const { panels } = v.parse(dashboard, readText('docker/grafana/dashboards/sluice.json'));

const rules = v.object({
  groups: v.array(
    v.strictObject({
      name: v.string(),
      rules: v.array(
        v.strictObject({
          alert: v.string(),
          expr: v.string(),
          for: v.optional(v.pipe(v.string(), v.regex(/^\d+[smh]$/))),
          labels: v.strictObject({ severity: v.picklist(['warning', 'critical']) }),
          annotations: v.strictObject({ summary: v.string(), description: v.optional(v.string()) }),
        }),
      ),
    }),
  ),
});
const alerts = v
  .parse(rules, parse(readText('docker/alerts.yml')))
  .groups.flatMap((group) => group.rules);

const scaledQueries = v.looseObject({
  triggers: v.array(v.looseObject({ metadata: v.looseObject({ query: v.optional(v.string()) }) })),
});
const queries = readManifests('docker/kubernetes')
  .filter(({ kind }) => kind === 'ScaledObject')
  .flatMap((object) => v.parse(scaledQueries, object['spec']).triggers)
  .flatMap(({ metadata }) => metadata.query ?? []);

test('the dashboard asks for what is exported', () => {
  const asked = panels.flatMap(({ targets }) => targets.map(({ expr }) => expr));
  expect(asked.length).toBeGreaterThan(20);
  expect(asked.flatMap((expr) => unknownOf(expr, exported))).toEqual([]);
});

test('alerts ask for what is exported', () => {
  expect(alerts.length).toBeGreaterThan(4);
  expect(alerts.flatMap(({ expr }) => unknownOf(expr, exported))).toEqual([]);
});

test('workers are scaled by what is exported', () => {
  expect(queries).toHaveLength(1);
  expect(queries.flatMap((expr) => unknownOf(expr, exported))).toEqual([]);
});

test('everything that Sluice counts is on the dashboard', () => {
  const asked = panels.flatMap(({ targets }) => targets.map(({ expr }) => expr)).join('\n');
  const own = [...exported.labels.keys()].filter((name) => name.startsWith('sluice_'));
  const shown = own.map((name) => name.replace(/_(?:bucket|sum|count)$/, ''));
  expect([...new Set(shown)].filter((name) => !asked.includes(name))).toEqual([]);
});

test('no two panels lie on each other', () => {
  expect(new Set(panels.map(({ id }) => id)).size).toBe(panels.length);
  const cells = panels.flatMap(({ gridPos: { x, y, w, h } }) =>
    Array.from({ length: w * h }, (_, at) => `${x + (at % w)} ${y + Math.floor(at / w)}`),
  );
  expect(new Set(cells).size).toBe(cells.length);
  expect(panels.every(({ gridPos }) => gridPos.x + gridPos.w <= 24)).toBe(true);
});

test.for([
  ['sum(sluice_line_total)', 'nobody exports sluice_line_total'],
  ['rate(sluice_lines_total{file="output"}[1m])', 'sluice_lines_total has no label file'],
  ['sluice_queue_deliveries{queue="dispatching"}', 'queue is never dispatching'],
  ['sum by (model) (sluice_lines_total)', 'no label model to group by'],
] as const)('%s is found', ([expr, fault]) => {
  expect(unknownOf(expr, exported)).toEqual([fault]);
});
