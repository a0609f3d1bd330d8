import { invalidInput } from '../errors.ts';
import { ENGINE_TYPES } from '../template.ts';
import type { TemplateSpec } from '../template.ts';
import type { EngineAdapter, EngineCommand, EngineSite } from './contract.ts';
import { custom } from './custom.ts';
import { refuse } from './flags.ts';
import { sglang } from './sglang.ts';
import { vllm } from './vllm.ts';

type EngineType = TemplateSpec['engine']['type'];

/** What starts an engine of each type that a template may name; null: nothing does. One more is a file and a line. */
const ENGINES: { readonly [T in EngineType]: EngineAdapter | null } = {
  vllm,
  sglang,
  custom,
  mock: custom,
  trtllm: null,
  lmdeploy: null,
  vipe: null,
};

/** Types of engines that can be started. */
export const STARTED_ENGINES: readonly EngineType[] = ENGINE_TYPES.filter(
  (type) => ENGINES[type] !== null,
);

/**
 * How an engine of a template is started on a machine. Pure: the same template and site give the same command. Throws
 * `InvalidInput` (`engine.unsupported`, `engine.refused`) with the field at fault and what to write instead.
 */
export function engineCommand(spec: TemplateSpec, site: EngineSite): EngineCommand {
  const { engine } = spec;
  const adapter = ENGINES[engine.type];
  if (adapter === null) {
    throw invalidInput(
      'engine.unsupported',
      `engine.type: no machine is leased for '${engine.type}'; supported are ${STARTED_ENGINES.join(', ')}. ` +
        "For another server that speaks OpenAI's API set custom, and its command in engine.serve_args",
      { param: 'engine.type' },
    );
  }
  if (site.listensTo === 'world' && site.apiKeyFile === null) {
    throw refuse('engine', 'an engine with a public address needs an API key');
  }
  if (site.servingName === '') throw refuse('engine', 'the model has no serving_name; set one');
  return {
    ...adapter.start(spec, site),
    image: imageOf(engine),
    port: site.port,
    ...enginePaths(engine),
    readyTimeoutMs: engine.ready_timeout_seconds * 1_000,
  };
}

/** Where an engine says that it is well, and where it shows its metrics. Throws as `engineCommand` does. */
export function enginePaths(
  engine: Pick<TemplateSpec['engine'], 'health_endpoint' | 'metrics_endpoint'>,
): Pick<EngineCommand, 'healthPath' | 'metricsPath'> {
  return {
    healthPath: pathOf(engine.health_endpoint, '/health', 'engine.health_endpoint'),
    metricsPath: pathOf(engine.metrics_endpoint, '/metrics', 'engine.metrics_endpoint'),
  };
}

/** An image without a tag is taken in the version of the engine; vLLM's and SGLang's tags are `v0.32.0`. */
export function imageOf({ image, version, type }: TemplateSpec['engine']): string {
  const name = image.slice(image.lastIndexOf('/') + 1);
  if (name.includes(':') || image.includes('@') || version === '') return image;
  const isNumber = /^\d+(?:\.\d+)+/.test(version);
  return `${image}:${isNumber && (type === 'vllm' || type === 'sglang') ? 'v' : ''}${version}`;
}

function pathOf(given: string, usual: string, param: string): string {
  if (given === '') return usual;
  if (/^[a-z][\w+.-]*:\/\//i.test(given) || /[\s#]/.test(given)) {
    throw refuse(param, `'${given}' is no path on the engine, such as ${usual}`);
  }
  return given.startsWith('/') ? given : `/${given}`;
}
