import type { TemplateSpec } from '../template.ts';
import type { EngineAdapter, EngineSite, EngineStart } from './contract.ts';
import { hostOf, refuse } from './flags.ts';
import { placeModel } from './model-source.ts';

/** Any server that answers as OpenAI does: `engine.serve_args` is its whole command, with places for what is ours. */
export const custom: EngineAdapter = { title: 'a server of your own', start };

const EXAMPLE = '["my-server", "--host", "{host}", "--port", "{port}", "--model", "{model}"]';

function start(spec: TemplateSpec, site: EngineSite): EngineStart {
  const { serve_args: words } = spec.engine;
  const place = placeModel(spec, site);
  checkWords(words);
  checkFields(spec, site);
  const { tp, pp, dp } = spec.parallelism;
  const fillings: Record<string, string> = {
    host: hostOf(site),
    port: String(site.port),
    model: place.model,
    served_model_name: site.servingName,
    revision: place.revision,
    tokenizer: place.tokenizer,
    chat_template: place.chatTemplate,
    tp: String(tp),
    pp: String(pp),
    dp: String(dp),
    gpus: String(spec.accelerator.count),
  };
  const secretFiles = [...place.secretFiles];
  if (site.apiKeyFile !== null) {
    const entries = [{ name: 'API_KEY', source: { kind: 'api_key' as const } }];
    secretFiles.push({ path: site.apiKeyFile, format: 'env', entries });
  }
  return {
    argv: words.map((word) => fill(word, fillings)),
    env: place.env,
    secretFiles,
    paths: place.paths,
  };
}

function fill(word: string, fillings: Readonly<Record<string, string>>): string {
  return word.replaceAll(/\{([a-z_]+)\}/g, (place, name: string) => {
    const filling = Object.hasOwn(fillings, name) ? fillings[name] : undefined;
    if (filling === '') {
      throw refuse('engine.serve_args', `the template says nothing to fill ${place} with`);
    }
    return filling ?? place;
  });
}

function checkWords(words: readonly string[]): void {
  const param = 'engine.serve_args';
  if (words.length === 0) {
    throw refuse(
      param,
      `it is the whole command of a server of your own; write it, such as ${EXAMPLE}`,
    );
  }
  if (words.some((word) => word === '' || word.includes('\0'))) {
    throw refuse(param, 'an entry is empty or has a zero byte; take it out');
  }
  if (!words.some((word) => word.includes('{port}'))) {
    throw refuse(
      param,
      `the port is chosen for each machine: put {port} where your server reads it, such as ${EXAMPLE}`,
    );
  }
  if (words.some((word) => /(?:^|[=/])0\.0\.0\.0(?:$|:)/.test(word))) {
    throw refuse(
      param,
      'it is reached through a tunnel and must not listen to the world: write {host} for 0.0.0.0',
    );
  }
}

/** Nothing is taken and not used: what a server of one's own is to know stands in its command. */
function checkFields({ engine_args: args, quantization }: TemplateSpec, site: EngineSite): void {
  const [argument] = Object.keys(args);
  if (argument !== undefined) {
    throw refuse(
      `engine_args.${argument}`,
      'nobody knows the flags of a server of your own: write it into engine.serve_args',
    );
  }
  if (quantization.weight !== '' || quantization.kv_cache !== '') {
    throw refuse(
      'quantization',
      'nobody knows the flags of a server of your own: write it into engine.serve_args',
    );
  }
  if (site.listensTo === 'world') {
    throw refuse(
      'engine.type',
      'nobody knows whether a server of your own asks for a key: it is reached through a tunnel only',
    );
  }
}
