import * as v from 'valibot';
import { invalidInput, notFound, SluiceError } from '../../domain/errors.ts';
import { isModelId, MODEL_CATEGORIES, modelIdOf } from '../../domain/model.ts';
import type { ModelRecord } from '../../domain/model.ts';
import type { Models } from '../../store/models.ts';
import { exactObject, parse, readJson } from '../body.ts';
import { pathId } from '../routes.ts';
import type { ApiContext, Route } from '../routes.ts';
import { snakeKeys } from './snake-keys.ts';
import { flagField, requiredText, textField, textList } from './texts.ts';

export interface ModelsDeps {
  store: { models: Models };
}

/** The catalog of models: snake_case out, both cases in. */
export function modelRoutes(deps: ModelsDeps): Route[] {
  return [
    { path: '/api/v1/models', get: (c) => list(c, deps), post: (c) => create(c, deps) },
    {
      path: '/api/v1/models/:id',
      async get(c) {
        return c.json(modelView(await findModel(deps, pathId(c))));
      },
      delete: (c) => remove(c, deps),
    },
  ];
}

const MOST_TEXT = 2_048;
const CATEGORIES_RULE = `a list of ${MODEL_CATEGORIES.join(', ')}`;
const price = textField(64);

/** The Console has a text here; a number of tokens means the same. */
const contextLength = v.pipe(
  v.nullish(v.union([v.string(), v.number()], 'a text such as 128k'), ''),
  v.transform(String),
  v.maxLength(64, 'a text of at most 64 characters'),
);

export const createModelSchema = exactObject({
  id: textField(134),
  name: requiredText(128),
  icon_bg: textField(128),
  icon_text: textField(128),
  icon_text_color: textField(128),
  categories: v.nullish(
    v.pipe(
      v.array(v.picklist(MODEL_CATEGORIES, CATEGORIES_RULE), CATEGORIES_RULE),
      v.transform((categories) => [...new Set(categories)]),
    ),
    [],
  ),
  is_new: flagField(),
  pricing: v.nullish(
    exactObject({
      uncached_input: price,
      cached_input: price,
      output: price,
      per_minute: price,
      per_image: price,
    }),
    {},
  ),
  context_length: contextLength,
  description: textField(16_384),
  metadata: v.nullish(
    exactObject({
      state: textField(128),
      created_on: textField(64),
      provider_name: textField(256),
      hugging_face: textField(MOST_TEXT),
    }),
    {},
  ),
  specification: v.nullish(
    exactObject({
      calibrated: flagField(),
      mixture_of_experts: flagField(),
      parameters: textField(64),
    }),
    {},
  ),
  tags: textList(64, 128),
  serving_name: textField(MOST_TEXT),
});

const ID_RULE = 'at most 134 letters, digits, dots, dashes and underscores';

async function create(c: ApiContext, deps: ModelsDeps): Promise<Response> {
  const { id: wish, ...info } = parse(
    createModelSchema,
    snakeKeys(await readJson(c.env.incoming), []),
  );
  const id = wish === '' ? modelIdOf(info.name) : wish;
  if (!isModelId(id)) {
    const mend = wish === '' ? " The name makes none: give an 'id' of its own." : '';
    throw invalidInput('invalid_value', `Invalid 'id': it must be ${ID_RULE}.${mend}`, {
      param: 'id',
    });
  }
  if ((await deps.store.models.create(id, info)) === 'created') {
    return c.json(modelView(await findModel(deps, id)));
  }
  throw new SluiceError(
    'Conflict',
    'model_exists',
    `There is a model '${id}' already: use it, choose another name, or give this one an 'id' of its own.`,
    { param: wish === '' ? 'name' : 'id' },
  );
}

export async function findModel(deps: ModelsDeps, id: string): Promise<ModelRecord> {
  const model = isModelId(id) ? await deps.store.models.get(id) : null;
  if (model !== null) return model;
  const message = `There is no model '${id.slice(0, 100)}': GET /api/v1/models lists all.`;
  throw notFound('model_not_found', message, { param: 'id' });
}

/** The Console's Model message with every one of its fields. */
export function modelView({ createdAt, ...model }: ModelRecord) {
  const createdOn = model.metadata.created_on || new Date(createdAt).toISOString().slice(0, 10);
  return { ...model, metadata: { ...model.metadata, created_on: createdOn } };
}

export const listModelsSchema = v.object({
  search: v.optional(v.string(), ''),
  category: v.optional(
    v.picklist([...MODEL_CATEGORIES, ''], `one of ${MODEL_CATEGORIES.join(', ')}`),
    '',
  ),
});

async function list(c: ApiContext, deps: ModelsDeps): Promise<Response> {
  const { search, category } = parse(listModelsSchema, c.req.query());
  const models = (await deps.store.models.list()).filter(
    (model) => isFound(model, search) && (category === '' || model.categories.includes(category)),
  );
  return c.json({ models: models.map(modelView) });
}

/** As AIBrix searches: in the name and in who provides it, whatever the case. */
function isFound({ name, metadata }: ModelRecord, search: string): boolean {
  const wanted = search.toLowerCase();
  return [name, metadata.provider_name].some((text) => text.toLowerCase().includes(wanted));
}

async function remove(c: ApiContext, deps: ModelsDeps): Promise<Response> {
  const { id } = await findModel(deps, pathId(c));
  if ((await deps.store.models.delete(id)) !== 'used') return c.json({});
  throw new SluiceError(
    'Conflict',
    'model_in_use',
    `Model '${id}' has deployment templates: delete them first. One that a job has used stays, and its model with it.`,
  );
}
