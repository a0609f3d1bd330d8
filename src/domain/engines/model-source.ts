import type { TemplateSpec } from '../template.ts';
import type { EngineSite, SecretFile } from './contract.ts';
import { refuse } from './flags.ts';

/** What an engine is told of the model that it loads. */
export interface ModelPlace {
  /** What the engine loads: a name on the Hugging Face hub, an `s3://` address or a path on the machine. */
  model: string;
  /** `stream`: weights come from object storage straight into memory. */
  from: 'hub' | 'stream' | 'disk';
  /** Version of `model`; empty: the newest. */
  revision: string;
  /** Where that is not with the weights; empty: with these. */
  tokenizer: string;
  /** Version of `tokenizer`; empty where it has none of its own. */
  tokenizerRevision: string;
  chatTemplate: string;
  env: Record<string, string>;
  secretFiles: SecretFile[];
  paths: string[];
}

type Source = Pick<ModelPlace, 'model' | 'from' | 'env'>;

/** Where the model of a template is, for an engine that reads the hub, S3 and the disk. */
export function placeModel(spec: TemplateSpec, site: EngineSite): ModelPlace {
  const { model_source: source, quantization } = spec;
  const artifact = quantization.weights_artifact_uri;
  const weights = findWeights(spec, site);
  const own = tokenizerOf(spec, weights);
  const chatTemplate = source.chat_template_path;
  if (/^[a-z][\w+.-]*:\/\//i.test(chatTemplate)) {
    throw refuse(
      'model_source.chat_template_path',
      `engines read no ${chatTemplate.split(':')[0]} address here: name a file on the machine or in the image`,
    );
  }
  const named = [weights.model, own.tokenizer, chatTemplate, site.cacheDir ?? ''];
  const secret = secretFile(spec, site, weights.from);
  return {
    ...weights,
    ...own,
    chatTemplate,
    revision: weights.from === 'hub' && artifact === '' ? source.revision : '',
    env: {
      ...(site.cacheDir === null ? {} : { HF_HOME: site.cacheDir }),
      ...weights.env,
    },
    secretFiles: secret === null ? [] : [secret],
    paths: [...new Set(named.filter((path) => path.startsWith('/')))],
  };
}

function findWeights(spec: TemplateSpec, site: EngineSite): Source {
  if (site.modelPath !== null) return onDisk(site.modelPath, 'modelPath');
  const artifact = spec.quantization.weights_artifact_uri;
  if (artifact !== '') {
    const type = /^(s3|tos|hdfs):/i.exec(artifact)?.[1]?.toLowerCase();
    const param = 'quantization.weights_artifact_uri';
    return sourceOf(type ?? (isPath(artifact) ? 'local' : 'huggingface'), artifact, param, site);
  }
  return sourceOf(spec.model_source.type, spec.model_source.uri, 'model_source.uri', site);
}

function isPath(uri: string): boolean {
  return uri.startsWith('/') || uri.startsWith('file://');
}

function sourceOf(type: string, uri: string, param: string, site: EngineSite): Source {
  if (type === 'local' || (type === 'huggingface' && isPath(uri))) return onDisk(uri, param);
  if (type === 'huggingface') return onHub(uri, param);
  if (type === 's3' || type === 'tos') return inStorage(type, uri, param, site);
  throw refuse(
    'model_source.type',
    `no engine here loads from ${type}; supported are huggingface, s3, tos and local`,
  );
}

function onDisk(uri: string, param: string): Source {
  const path = uri.replace(/^file:\/\//, '');
  if (!path.startsWith('/')) {
    throw refuse(param, `'${uri}' is no absolute path; name the folder as the machine has it`);
  }
  return { model: path, from: 'disk', env: {} };
}

function onHub(uri: string, param: string): Source {
  const name = uri.replace(/^(?:hf:\/\/|https:\/\/huggingface\.co\/)/, '').replace(/\/+$/, '');
  if (!/^\w[\w.-]*(?:\/[\w.-]+)?$/.test(name)) {
    throw refuse(param, `'${uri}' is no name on the Hugging Face hub, such as Qwen/Qwen3-8B`);
  }
  return { model: name, from: 'hub', env: {} };
}

/**
 * vLLM and SGLang stream weights from S3 by the Run:ai model streamer, which takes any endpoint that speaks S3. TOS
 * does (https://tos-s3-<region>…), with the bucket in the host's name only.
 */
function inStorage(type: 's3' | 'tos', uri: string, param: string, site: EngineSite): Source {
  const path = /^(?:s3|tos):\/\/([^/]+\/.*[^/])\/*$/i.exec(uri)?.[1];
  if (path === undefined) {
    throw refuse(param, `'${uri}' is no address such as ${type}://bucket/folder`);
  }
  if (type === 'tos' && site.objectStore === null) {
    throw refuse(
      param,
      'weights in TOS are read through its S3 interface: set TOS_ENDPOINT and TOS_REGION',
    );
  }
  const env: Record<string, string> = { AWS_EC2_METADATA_DISABLED: 'true' };
  if (site.objectStore !== null) {
    env['AWS_ENDPOINT_URL'] = site.objectStore.endpoint;
    env['AWS_DEFAULT_REGION'] = site.objectStore.region;
  }
  if (type === 'tos') env['RUNAI_STREAMER_S3_USE_VIRTUAL_ADDRESSING'] = '1';
  return { model: `s3://${path}`, from: 'stream', env };
}

/** Quantized weights often come without a tokenizer, so that of the model itself is taken where none is named. */
function tokenizerOf(
  { model_source: source, quantization }: TemplateSpec,
  weights: Source,
): Pick<ModelPlace, 'tokenizer' | 'tokenizerRevision'> {
  const isApart = quantization.weights_artifact_uri !== '' && source.type === 'huggingface';
  if (source.tokenizer_path === '' && isApart) {
    const { model } = onHub(source.uri, 'model_source.uri');
    return { tokenizer: model, tokenizerRevision: source.revision };
  }
  const tokenizer = source.tokenizer_path;
  // The engine looks for the model's revision in the tokenizer's repository, too, where there is none.
  const isElsewhere = tokenizer !== '' && !isPath(tokenizer) && tokenizer !== weights.model;
  const needsOwn = isElsewhere && source.revision !== '' && weights.from === 'hub';
  return { tokenizer, tokenizerRevision: needsOwn ? 'main' : '' };
}

function secretFile(
  { model_source: source }: TemplateSpec,
  { secretsFile: path }: EngineSite,
  from: ModelPlace['from'],
): SecretFile | null {
  const name = source.auth_secret_ref;
  const isStorage = source.type === 's3' || source.type === 'tos';
  if (name === '' || (isStorage && from !== 'stream')) return null;
  if (path === null) {
    throw refuse('model_source.auth_secret_ref', `there is no file for the secret '${name}'`);
  }
  const fill = (variable: string, entry: string) => ({
    name: variable,
    source: { kind: 'named' as const, name, entry },
  });
  const entries =
    from === 'stream'
      ? [fill('AWS_ACCESS_KEY_ID', 'access_key'), fill('AWS_SECRET_ACCESS_KEY', 'secret_key')]
      : [fill('HF_TOKEN', 'token')];
  return { path, format: 'env', entries };
}
