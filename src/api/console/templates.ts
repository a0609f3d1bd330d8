import * as v from 'valibot';
import { invalidInput, notFound, SluiceError } from '../../domain/errors.ts';
import { isModelId } from '../../domain/model.ts';
import { chooseTemplate, TEMPLATE_STATUSES } from '../../domain/template.ts';
import type { ResolvedTemplate, TemplateRecord } from '../../domain/template.ts';
import type { Models } from '../../store/models.ts';
import type { Templates } from '../../store/templates.ts';
import { parse, readJson } from '../body.ts';
import { derivedText, isTemplateId, randomText } from '../ids.ts';
import { pathId } from '../routes.ts';
import type { ApiContext, Route } from '../routes.ts';
import { findModel } from './models.ts';
import { listQuery } from './request.ts';
import { snakeKeys } from './snake-keys.ts';
import { changeTemplateSchema, createTemplateSchema } from './template-schema.ts';

export interface TemplatesDeps {
  store: { models: Models; templates: Templates };
}

const PATH = '/api/v1/models/:id/deployment-templates';

/** The versions of how a model is deployed: snake_case out, both cases in. */
export function templateRoutes(deps: TemplatesDeps): Route[] {
  return [
    { path: PATH, get: (c) => list(c, deps), post: (c) => create(c, deps) },
    { path: `${PATH}/resolve`, get: (c) => lookUp(c, deps, c.req.query('name') ?? '') },
    { path: `${PATH}/by-name/:name`, get: (c) => lookUp(c, deps, c.req.param('name') ?? '') },
    {
      path: `${PATH}/:template`,
      async get(c) {
        return c.json(templateView(await findTemplate(c, deps)));
      },
      put: (c) => change(c, deps),
      patch: (c) => change(c, deps),
      delete: (c) => remove(c, deps),
    },
  ];
}

/** What is in a key of a template's engine arguments is the engine's own. */
const VERBATIM = ['engine_args', 'engineArgs'];

export function templateView(template: TemplateRecord) {
  return {
    id: template.id,
    name: template.name,
    version: template.version,
    status: template.status,
    model_id: template.modelId,
    spec: template.spec,
    used: template.usedAt !== null,
    created_at: new Date(template.createdAt).toISOString(),
    updated_at: new Date(template.updatedAt).toISOString(),
  };
}

export const listTemplatesSchema = v.object({
  name: v.optional(v.string(), ''),
  status: v.optional(
    v.picklist([...TEMPLATE_STATUSES, ''], `one of ${TEMPLATE_STATUSES.join(', ')}`),
    '',
  ),
});

async function list(c: ApiContext, deps: TemplatesDeps): Promise<Response> {
  const { name, status } = parse(listTemplatesSchema, listQuery(c));
  const model = await findModel(deps, pathId(c));
  const templates = (await deps.store.templates.list(model.id)).filter(
    (each) => (name === '' || each.name === name) && (status === '' || each.status === status),
  );
  return c.json({ templates: templates.map(templateView) });
}

async function create(c: ApiContext, deps: TemplatesDeps): Promise<Response> {
  const modelId = pathId(c);
  const body = parse(createTemplateSchema, snakeKeys(await readJson(c.env.incoming), VERBATIM));
  requireSameModel(modelId, body.model_id);
  const { name, version, status, spec } = body;
  const { creationKey } = c.var;
  const id = `tpl_${creationKey === undefined ? randomText() : derivedText(creationKey)}`;
  const template = { id, modelId, name, version, status, spec };
  const outcome = isModelId(modelId) ? await deps.store.templates.create(template) : 'no model';
  if (outcome === 'no model') {
    throw invalidInput(
      'model_not_found',
      `There is no model '${modelId.slice(0, 100)}': register it with POST /api/v1/models before it gets templates.`,
      { param: 'model_id' },
    );
  }
  // The same request may have made it before, and died before its answer was kept.
  const made = await deps.store.templates.get(modelId, id);
  if (made === null) throw taken(template);
  return c.json(templateView(made));
}

function requireSameModel(inPath: string, inBody: string | null | undefined): void {
  if (inBody === null || inBody === undefined || inBody === '' || inBody === inPath) return;
  throw invalidInput(
    'invalid_value',
    `'model_id' is '${inBody.slice(0, 100)}', but the path names '${inPath.slice(0, 100)}': leave it out.`,
    { param: 'model_id' },
  );
}

function taken({ modelId, name, version }: Pick<TemplateRecord, 'modelId' | 'name' | 'version'>) {
  return new SluiceError(
    'Conflict',
    'template_exists',
    `Model '${modelId}' has a template '${name}' of version '${version}' already: choose another version, or change that one.`,
    { param: 'version' },
  );
}

function inUse({ name, version }: Pick<TemplateRecord, 'name' | 'version'>, mend: string) {
  return new SluiceError(
    'Conflict',
    'template_in_use',
    `Template '${name}' of version '${version}' was used by a job, and stays what it was then: ${mend}.`,
  );
}

async function requireTemplate(
  deps: TemplatesDeps,
  modelId: string,
  id: string,
): Promise<TemplateRecord> {
  const isThinkable = isModelId(modelId) && isTemplateId(id);
  const template = isThinkable ? await deps.store.templates.get(modelId, id) : null;
  if (template !== null) return template;
  throw notFound(
    'template_not_found',
    `Model '${modelId.slice(0, 100)}' has no deployment template '${id.slice(0, 100)}': GET /api/v1/models/${modelId.slice(0, 100)}/deployment-templates lists all.`,
    { param: 'id' },
  );
}

function findTemplate(c: ApiContext, deps: TemplatesDeps): Promise<TemplateRecord> {
  return requireTemplate(deps, pathId(c), c.req.param('template') ?? '');
}

async function change(c: ApiContext, deps: TemplatesDeps): Promise<Response> {
  const body = parse(changeTemplateSchema, snakeKeys(await readJson(c.env.incoming), VERBATIM));
  requireSameModel(pathId(c), body.model_id);
  for (;;) {
    const seen = await findTemplate(c, deps);
    const next = {
      ...seen,
      name: body.name || seen.name,
      version: body.version || seen.version,
      status: body.status || seen.status,
      spec: body.spec ?? seen.spec,
    };
    const outcome = await deps.store.templates.change(next);
    if (outcome === 'used') {
      throw inUse(seen, 'create a new version; only its status may be changed');
    }
    if (outcome === 'taken') throw taken(next);
    // Somebody else was faster, or it is gone: what is there now decides.
    if (outcome === 'changed') return c.json(templateView(await findTemplate(c, deps)));
  }
}

async function remove(c: ApiContext, deps: TemplatesDeps): Promise<Response> {
  const template = await findTemplate(c, deps);
  const outcome = await deps.store.templates.delete(template.modelId, template.id);
  if (outcome === 'used') throw inUse(template, "set its status to 'deprecated' instead");
  return c.json({});
}

async function lookUp(c: ApiContext, deps: TemplatesDeps, name: string): Promise<Response> {
  const { id: modelId } = await findModel(deps, pathId(c));
  if (name === '') {
    throw invalidInput('missing_required_parameter', "Missing required parameter: 'name'.", {
      param: 'name',
    });
  }
  const found = await choose(deps, { modelId, name, version: c.req.query('version') });
  return c.json(templateView(found));
}

/** Which template somebody means. */
export interface TemplateWish {
  /** The model that it belongs to; without one it is looked for under all. */
  modelId?: string | undefined;
  name: string;
  /** Without one the active template of the highest version is taken. */
  version?: string | undefined;
  /** The field of a request that names it: with it every failure is invalid input (400) at that field. */
  param?: string;
  /** It is not named by the request, but by the server's settings. */
  isDefault?: boolean;
}

/**
 * Finds the template that is meant. Nothing of that name: `template_not_found` (404), no active version:
 * `template_not_active` (409), the same name under several models: `template_ambiguous` (409); all are invalid input
 * (400) where `param` says that it is part of a request.
 */
export async function resolveTemplate(
  deps: TemplatesDeps,
  wish: TemplateWish,
): Promise<ResolvedTemplate> {
  const template = await choose(deps, wish);
  const { id, name, version, modelId, revision, spec } = template;
  const model = await deps.store.models.get(modelId);
  const servingName = model?.serving_name || spec.model_source.uri;
  return { id, name, version, modelId, servingName, revision, spec };
}

async function choose(deps: TemplatesDeps, wish: TemplateWish): Promise<TemplateRecord> {
  const { modelId = '', name, version = '' } = wish;
  const named = await allNamed(deps, modelId, name);
  const models = new Set(named.map((each) => each.modelId));
  if (models.size > 1) {
    const some = [...models].slice(0, 5).join(', ');
    throw refusal(wish, 'Conflict', 'template_ambiguous', [
      `Several models have a template '${clip(name)}' (${some}): say which with 'model_id'.`,
    ]);
  }
  const chosen = chooseTemplate(named, version);
  if (typeof chosen === 'object') return chosen;
  const where = modelId === '' ? '' : ` under model '${clip(modelId)}'`;
  if (chosen === 'none active') {
    throw refusal(wish, 'Conflict', 'template_not_active', [
      `No version of template '${clip(name)}'${where} is active:`,
      `set the status of one to 'active', or name a version (${versionsOf(named)}).`,
    ]);
  }
  const what = version === '' ? '' : ` of version '${clip(version)}'`;
  const others =
    named.length === 0
      ? ' GET /api/v1/models/{model_id}/deployment-templates lists those of a model.'
      : ` It has ${versionsOf(named)}.`;
  throw refusal(wish, 'NotFound', 'template_not_found', [
    `There is no template '${clip(name)}'${what}${where}.${others}`,
  ]);
}

/** Models whose templates are read with one breath; bounds memory, and what waits in the client. */
const MODELS_AT_ONCE = 20;

async function allNamed(
  { store }: TemplatesDeps,
  modelId: string,
  name: string,
): Promise<TemplateRecord[]> {
  if (modelId !== '' && !isModelId(modelId)) return [];
  const models = modelId === '' ? (await store.models.list()).map(({ id }) => id) : [modelId];
  const named: TemplateRecord[] = [];
  for (let start = 0; start < models.length; start += MODELS_AT_ONCE) {
    const some = models.slice(start, start + MODELS_AT_ONCE);
    const lists = await Promise.all(some.map((id) => store.templates.list(id)));
    named.push(...lists.flat().filter((each) => each.name === name));
    // Two models make the name ambiguous, whatever the others have.
    if (new Set(named.map((each) => each.modelId)).size > 1) break;
  }
  return named;
}

function versionsOf(templates: readonly TemplateRecord[]): string {
  return templates
    .slice(0, 10)
    .map(({ version, status }) => `${version} ${status}`)
    .join(', ');
}

const WHOSE_DEFAULT =
  'It is the default of this server (DEFAULT_BATCH_MODEL_DEPLOYMENT_TEMPLATE): name another one in the request, or have that mended.';

function refusal(
  { param, isDefault = false }: TemplateWish,
  kind: 'NotFound' | 'Conflict',
  code: string,
  words: readonly string[],
): SluiceError {
  const whose = isDefault ? [WHOSE_DEFAULT] : [];
  const message = [...words, ...whose].join(' ');
  if (param !== undefined) return invalidInput(code, message, { param });
  return new SluiceError(kind, code, message);
}

/**
 * Marks a template as used by a job: from then on only its status may change. To be called before the job is created.
 * `template_changed` (Conflict) when it is no longer what was resolved: resolve it again.
 */
export async function useTemplate(
  { store }: TemplatesDeps,
  template: Pick<ResolvedTemplate, 'id' | 'modelId' | 'revision' | 'name'>,
): Promise<void> {
  if ((await store.templates.use(template)) === 'used') return;
  throw new SluiceError(
    'Conflict',
    'template_changed',
    `Template '${template.name}' was changed at this very moment: try again.`,
  );
}

/** Users' text in messages is cut: an error is no place for a megabyte. */
function clip(text: string): string {
  return text.slice(0, 100);
}
