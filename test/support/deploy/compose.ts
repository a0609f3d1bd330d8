import { existsSync } from 'node:fs';
import { join } from 'node:path';
import * as v from 'valibot';
import { parse } from 'yaml';
import { readText, ROOT } from './manifests.ts';

const strings = v.optional(v.array(v.string()), []);
const entrypoint = v.optional(v.union([v.string(), v.array(v.string())]));

const service = v.looseObject({
  image: v.string(),
  build: v.optional(v.strictObject({ context: v.string(), dockerfile: v.string() })),
  command: v.optional(v.array(v.string()), []),
  entrypoint,
  profiles: strings,
  environment: v.optional(v.record(v.string(), v.string()), {}),
  volumes: strings,
  ports: strings,
  restart: v.optional(v.string()),
  read_only: v.optional(v.boolean(), false),
  cap_drop: strings,
  cap_add: strings,
  security_opt: strings,
  network_mode: v.optional(v.string()),
  healthcheck: v.optional(v.looseObject({ test: v.array(v.string()) })),
  stop_grace_period: v.optional(v.string()),
  depends_on: v.optional(
    v.union([v.array(v.string()), v.record(v.string(), v.object({ condition: v.string() }))]),
    [],
  ),
});
type Service = v.InferOutput<typeof service>;

const compose = v.looseObject({
  services: v.record(v.string(), service),
  volumes: v.record(v.string(), v.unknown()),
});

export type Compose = v.InferOutput<typeof compose>;

/** docker/compose.yml, its merges done. */
export function readCompose(): Compose {
  return v.parse(compose, parse(readText('docker/compose.yml'), { merge: true }));
}

/** Which services it waits for, and for what. */
function needsOf({ depends_on: needs }: Service): [name: string, condition: string][] {
  if (Array.isArray(needs)) return needs.map((name) => [name, 'service_started']);
  return Object.entries(needs).map(([name, { condition }]) => [name, condition]);
}

function* faultsOfService(service: Service, { services, volumes }: Compose): Generator<string> {
  for (const [name, condition] of needsOf(service)) {
    const other = services[name];
    if (other === undefined) yield `needs ${name}, which is not there`;
    else if (condition === 'service_healthy' && other.healthcheck === undefined) {
      yield `waits for the health of ${name}, which has no check`;
    } else if (other.profiles.some((profile) => !service.profiles.includes(profile))) {
      yield `needs ${name}, which is not started with it`;
    }
  }
  for (const volume of service.volumes) {
    const [source = ''] = volume.split(':');
    const isFile = source.startsWith('./');
    if (isFile ? !existsSync(join(ROOT, 'docker', source)) : !Object.hasOwn(volumes, source)) {
      yield `mounts ${source}, which is not there`;
    }
  }
  const { build, image } = service;
  if (build === undefined && !/:v?\d+\.\d+/.test(image)) yield `${image} has no version`;
  if (build !== undefined && !existsSync(join(ROOT, 'docker', build.context, build.dockerfile))) {
    yield `there is no ${build.dockerfile}`;
  }
}

/** What it names and is not there. */
export function composeFaults(file: Compose): string[] {
  return Object.entries(file.services).flatMap(([name, service]) =>
    [...faultsOfService(service, file)].map((fault) => `${name} ${fault}`),
  );
}

/** The text with Compose's variables filled in; throws for one that is wanted and not given. */
export function interpolate(text: string, values: Readonly<Record<string, string>>): string {
  return text.replaceAll(
    /\$\{(\w+)(?::(-|\?)([^}]*))?\}/g,
    (_all, name: string, kind: string | undefined, word = '') => {
      const value = values[name] ?? '';
      if (value !== '') return value;
      if (kind === '?') throw new Error(`${name}: ${String(word)}`);
      return String(word);
    },
  );
}
