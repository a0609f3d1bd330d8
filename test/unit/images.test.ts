import { readdirSync } from 'node:fs';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import * as v from 'valibot';
import { basesOf, lint, parseInstructions, readDockerfile } from '../support/deploy/dockerfile.ts';
import { readText, ROOT } from '../support/deploy/manifests.ts';

const FILES = ['docker/Dockerfile', 'docker/vllm-mock/Dockerfile', 'docker/simulators/Dockerfile'];
/** Machines are namespaces, which only root makes. */
const ROOTS = new Set(['docker/simulators/Dockerfile']);

const manifest = v.pipe(
  v.string(),
  v.parseJson(),
  v.looseObject({ version: v.string(), dependencies: v.record(v.string(), v.string()) }),
);
const { version, dependencies } = v.parse(manifest, readText('package.json'));

test('these are all Dockerfiles that there are', () => {
  const found = readdirSync(join(ROOT, 'docker'), { recursive: true, encoding: 'utf8' });
  const files = found.filter((name) => name.endsWith('Dockerfile'));
  expect(new Set(files.map((name) => `docker/${name}`))).toEqual(new Set(FILES));
});

test.for(FILES)('%s keeps the rules', (path) => {
  expect(lint(readDockerfile(path), { root: ROOTS.has(path) })).toEqual([]);
});

test.for(FILES)('%s has the Node of package.json', (path) => {
  for (const base of basesOf(readDockerfile(path).instructions)) {
    expect(base).toBe(`node:${dependencies['node'] ?? ''}-trixie-slim`);
  }
});

test('image and manifests have the version of package.json', () => {
  expect(readText('docker/Dockerfile')).toContain(`ARG VERSION=${version}\n`);
  const users = [
    'config/kubernetes/job-template.yaml',
    'config/kubernetes/job-template-legacy.yaml',
    'docker/kubernetes/base/api.yaml',
    'docker/kubernetes/base/workers.yaml',
    'docker/kubernetes/base/sweeper.yaml',
  ];
  for (const path of users) expect(readText(path)).toContain(`image: sluice:${version}\n`);
  expect(readText('docker/compose.yml')).toContain(
    `image: sluice:\${SLUICE_VERSION:-${version}}\n`,
  );
  expect(readText('docker/kubernetes/overlays/example/kustomization.yaml')).toContain(
    `newTag: ${version}\n`,
  );
});

test.for([
  ['FROM node', 'another image tomorrow'],
  ['FROM node:latest', 'another image tomorrow'],
  ['FROM node:24-slim', 'another image tomorrow'],
  ['ADD https://example.com/a.tgz /a', 'COPY'],
  ['COPY . .', 'takes what it does not name'],
  ['COPY nowhere ./nowhere', 'there is no nowhere'],
  ['COPY test ./test', 'holds test back'],
  ['COPY --from=builder /a /a', 'no stage builder'],
  ['ENV API_TOKEN=abc', 'stays in the image'],
  ['ARG NPM_PASSWORD', 'stays in the image'],
  ['CMD node a.js', 'signals reach the shell only'],
  ['ENTRYPOINT sluice', 'signals reach the shell only'],
  ['USER root', 'USER root'],
  ['USER node', 'USER node'],
  ['WORKDIR app', 'depends on the one before'],
  ['RUN curl -s https://example.com/x | sh', 'runs what it fetches'],
  ['RUN npm install left-pad', 'npm ci'],
  ['RUN npm ci --omit=dev', 'runs what packages bring'],
  ['RUN apt-get update && apt-get install -y curl', 'no-install-recommends'],
  ['RUN apt-get install --no-install-recommends -y curl', 'old list'],
  ['RUN if true', 'no shell script'],
] as const)('%s is found', ([line, fault]) => {
  const instructions = parseInstructions(`FROM node:24.21.0-slim\n${line}\n`);
  const faults = lint({ path: 'Dockerfile', instructions, context: ['src'] });
  expect(faults.join('\n')).toContain(fault);
});
