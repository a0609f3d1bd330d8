import * as v from 'valibot';
import { MODEL_CATEGORIES } from '../domain/model.ts';
import type { ModelInfo, ModelRecord } from '../domain/model.ts';
import { modelRecordId, recordKey } from './keys.ts';
import { integer, jsonText, parseRecord } from './parse.ts';
import type { Fields } from './parse.ts';
import { createRecord, enterIndex, readFields, readRecords, walkIndex } from './records.ts';
import type { Context } from './records.ts';
import { newOp } from './scripts.ts';

/** The catalog of models. Ids come from names, so each namespace has its own. */
export interface Models {
  create(id: string, info: ModelInfo): Promise<'created' | 'exists'>;
  /** A damaged record is `store.damaged_record` (Permanent). */
  get(id: string): Promise<ModelRecord | null>;
  /** Newest first. Damaged ones are left out and reported. */
  list(): Promise<ModelRecord[]>;
  /** Removes a model that has no deployment template; `used`: it has some, and stays. */
  delete(id: string): Promise<'removed' | 'used' | 'gone'>;
}

const removal = v.picklist(['removed', 'used', 'gone']);

export function createModels(context: Context): Models {
  const { redis, scripts, keys } = context;
  return {
    async create(id, info) {
      const record = modelRecordId(keys, id);
      const outcome = await createRecord(context, {
        id: record,
        enter: (anew) => enterIndex(context, keys.models, record, anew),
        fields: (at) => ({ info: JSON.stringify(info), created_at: at }),
      });
      return outcome === 'created' ? 'created' : 'exists';
    },
    async get(id) {
      const record = modelRecordId(keys, id);
      const fields = await readFields(context, record);
      return fields === null ? null : parseModel(context, record, fields);
    },
    async list() {
      const ids: string[] = [];
      for await (const id of walkIndex(context, keys.models)) ids.push(id);
      const found = await readRecords(context, ids.toReversed(), (id, fields) =>
        parseModel(context, id, fields),
      );
      return found.filter((model) => model !== null);
    },
    async delete(id) {
      const record = modelRecordId(keys, id);
      const reply = await scripts.run('model-remove', recordKey(record), newOp());
      const outcome = v.parse(removal, reply);
      if (outcome !== 'used') await redis.zrem(keys.models, record);
      return outcome;
    },
  };
}

const text = v.string();
const modelInfo = v.object({
  name: text,
  icon_bg: text,
  icon_text: text,
  icon_text_color: text,
  categories: v.array(v.picklist(MODEL_CATEGORIES)),
  is_new: v.boolean(),
  pricing: v.object({
    uncached_input: text,
    cached_input: text,
    output: text,
    per_minute: text,
    per_image: text,
  }),
  context_length: text,
  description: text,
  metadata: v.object({ state: text, created_on: text, provider_name: text, hugging_face: text }),
  specification: v.object({
    calibrated: v.boolean(),
    mixture_of_experts: v.boolean(),
    parameters: text,
  }),
  tags: v.array(text),
  serving_name: text,
});
const modelFields = v.object({ info: v.pipe(jsonText, modelInfo), created_at: integer });

function parseModel({ keys }: Context, record: string, fields: Fields): ModelRecord {
  const { info, created_at: createdAt } = parseRecord(record, modelFields, fields);
  return { id: record.slice(keys.model.length), ...info, createdAt };
}
