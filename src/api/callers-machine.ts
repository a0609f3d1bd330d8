import { invalidInput } from '../domain/errors.ts';
import type { JobResources } from '../domain/lease.ts';
import type { ResolvedTemplate, TemplateSpec } from '../domain/template.ts';
import type { MachineWish } from './engines.ts';
import { requireStartable } from './resources.ts';

/** What of this server's settings says whether machines of callers can be used. */
export interface MachineDefaults {
  /** With which machines are logged in to. */
  sshKeyFile?: string | undefined;
  /** A service that runs jobs in place of this server. */
  metadataServiceUrl?: string | undefined;
}

const PARAM = 'aibrix.runtime.options';

/**
 * What a job gets that is to run on a machine of its caller's, with its template as it is now: nothing is leased for it.
 * `templateParam` is the field that names the template.
 */
export function resolveMachine(
  defaults: MachineDefaults,
  wish: MachineWish,
  template: ResolvedTemplate,
  templateParam: string,
): JobResources {
  requireLogin(defaults, `${PARAM}.host`);
  const spec = specFor(wish, template);
  const { provider, login, hostKey } = wish;
  requireStartable({ ...template, spec }, [provider], templateParam);
  return {
    spec,
    servingName: template.servingName,
    templateId: template.id,
    replicas: 1,
    providers: [provider],
    regions: [],
    gpuTypes: [],
    interruptible: false,
    maxPricePerHour: null,
    maxCostUsd: null,
    maxIdleMinutes: null,
    machine: { login, hostKey },
  };
}

/** Refuses a machine that this server could not log in to; `param` is the field that asks for it. */
export function requireLogin(
  { sshKeyFile, metadataServiceUrl }: MachineDefaults,
  param: string,
): void {
  if (metadataServiceUrl !== undefined) {
    const message = `This server has its batches run by METADATA_SERVICE_URL, which is given no machine of yours: leave '${PARAM}.host' out, or unset that.`;
    throw invalidInput('invalid_value', message, { param });
  }
  if (sshKeyFile !== undefined) return;
  const message =
    'This server has no key to log in to machines with: start it with AIBRIX_BATCH_SSH_KEY_FILE naming a private key ' +
    'whose public half your machine lets in; or start the engine there, and name its URL in base_url.';
  throw invalidInput('ssh.key_missing', message, { param });
}

function specFor(
  { image, vllmArgs, model }: MachineWish,
  { name, version, spec, servingName }: ResolvedTemplate,
): TemplateSpec {
  const { engine, model_source: source } = spec;
  if (model !== null && model !== servingName && model !== source.uri) {
    const message = `The template '${name}' in version '${version}' starts the model '${source.uri}', not '${model}': leave '${PARAM}.model' out, or use another template.`;
    throw invalidInput('model_mismatch', message, { param: `${PARAM}.model` });
  }
  if (vllmArgs.length > 0 && engine.type !== 'vllm') {
    const message = `The template '${name}' in version '${version}' starts ${engine.type}: leave '${PARAM}.vllm_args' out, and say its arguments in engine.serve_args of the template.`;
    throw invalidInput('invalid_value', message, { param: `${PARAM}.vllm_args` });
  }
  const serve_args = [...engine.serve_args, ...vllmArgs];
  return { ...spec, engine: { ...engine, image: image ?? engine.image, serve_args } };
}
