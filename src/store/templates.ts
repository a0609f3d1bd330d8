import * as v from 'valibot';
import { ENDPOINTS } from '../domain/job.ts';
import {
  DEPLOYMENT_MODES,
  ENGINE_TYPES,
  INTERCONNECTS,
  INVOCATIONS,
  KV_CACHE_FORMATS,
  MODEL_SOURCES,
  TEMPLATE_STATUSES,
  WEIGHT_FORMATS,
} from '../domain/template.ts';
import type { TemplateRecord, TemplateSpec } from '../domain/template.ts';
import { modelRecordId, recordKey, templateKey, templatesKey } from './keys.ts';
import { integer, jsonText, parseRecord } from './parse.ts';
import type { Fields } from './parse.ts';
import { orReport } from './records.ts';
import type { Context } from './records.ts';
import { newOp } from './scripts.ts';

type Draft = Pick<TemplateRecord, 'id' | 'modelId' | 'name' | 'version' | 'status' | 'spec'>;
type Seen = Pick<TemplateRecord, 'id' | 'modelId' | 'revision'>;

/**
 * Deployment templates. Those of one model lie beside its record, in one slot, so that a name and version is given
 * once, and that a model goes only when it has none.
 */
export interface Templates {
  /** `taken`: this model has that name and version already. */
  create(template: Draft): Promise<'created' | 'no model' | 'taken'>;
  /** A damaged record is `store.damaged_record` (Permanent). */
  get(modelId: string, id: string): Promise<TemplateRecord | null>;
  /** All of a model, newest first. Damaged ones are left out and reported. */
  list(modelId: string): Promise<TemplateRecord[]>;
  /**
   * Gives a template new contents if it still has the revision that the caller read, else `stale`. `used`: a job has
   * used it, and more than its status would change; `taken`: another one has that name and version.
   */
  change(template: Draft & Seen): Promise<'changed' | 'stale' | 'used' | 'taken' | 'gone'>;
  /** Marks that a job uses it as it is in this revision; may be called for each job. */
  use(template: Seen): Promise<'used' | 'stale' | 'gone'>;
  /** Removes one that no job has used. */
  delete(modelId: string, id: string): Promise<'removed' | 'used' | 'gone'>;
}

const created = v.picklist(['created', 'no model', 'taken']);
const changed = v.picklist(['changed', 'stale', 'used', 'taken', 'gone']);
const marked = v.picklist(['used', 'stale', 'gone']);
const removed = v.picklist(['removed', 'used', 'gone']);

export function createTemplates(context: Context): Templates {
  const { redis, scripts, keys } = context;
  function keyOf(modelId: string): string {
    return recordKey(modelRecordId(keys, modelId));
  }
  async function get(modelId: string, id: string): Promise<TemplateRecord | null> {
    const fields = await redis.hgetall(templateKey(keys, modelId, id));
    return Object.keys(fields).length === 0 ? null : parseTemplate(modelId, id, fields);
  }
  return {
    async create({ modelId, id, ...draft }) {
      const args = [newOp(), id, ...contents(draft)];
      return v.parse(created, await scripts.run('template-create', keyOf(modelId), ...args));
    },
    get,
    async list(modelId) {
      const ids = await redis.zrevrange(templatesKey(keys, modelId), 0, -1);
      // The keys of one model lie in one slot, and a model has a handful of templates.
      const all = await Promise.all(
        ids.map(async (id) => {
          const fields = await redis.hgetall(templateKey(keys, modelId, id));
          if (Object.keys(fields).length === 0) return null;
          return orReport(context, () => parseTemplate(modelId, id, fields));
        }),
      );
      return all.filter((template) => template !== null);
    },
    async change({ modelId, id, revision, ...draft }) {
      const args = [newOp(), id, revision, ...contents(draft)];
      return v.parse(changed, await scripts.run('template-change', keyOf(modelId), ...args));
    },
    async use({ modelId, id, revision }) {
      return v.parse(marked, await scripts.run('template-use', keyOf(modelId), id, revision));
    },
    async delete(modelId, id) {
      return v.parse(removed, await scripts.run('template-remove', keyOf(modelId), newOp(), id));
    },
  };
}

/** What scripts write; the first is the name under which a model knows a version. */
function contents(draft: Pick<Draft, 'name' | 'version' | 'status' | 'spec'>): string[] {
  const { name, version, status, spec } = draft;
  return [JSON.stringify([name, version]), name, version, status, JSON.stringify(spec)];
}

const text = v.string();
const number = v.number();
/** How a model is deployed, as records hold it. */
export const templateSpec: v.GenericSchema<unknown, TemplateSpec> = v.object({
  engine: v.object({
    type: v.picklist(ENGINE_TYPES),
    version: text,
    image: text,
    invocation: v.picklist(INVOCATIONS),
    serve_args: v.array(text),
    health_endpoint: text,
    ready_timeout_seconds: number,
    metrics_endpoint: text,
  }),
  model_source: v.object({
    type: v.picklist(MODEL_SOURCES),
    uri: text,
    revision: text,
    tokenizer_path: text,
    chat_template_path: text,
    auth_secret_ref: text,
  }),
  accelerator: v.object({
    type: text,
    count: number,
    interconnect: v.picklist([...INTERCONNECTS, '']),
    vram_gb: number,
    sku_hint: text,
  }),
  parallelism: v.object({ tp: number, pp: number, dp: number, ep: number, sp: number, cp: number }),
  engine_args: v.record(text, text),
  quantization: v.object({
    weight: v.picklist([...WEIGHT_FORMATS, '']),
    kv_cache: v.picklist([...KV_CACHE_FORMATS, '']),
    weights_artifact_uri: text,
  }),
  supported_endpoints: v.array(v.picklist(ENDPOINTS)),
  deployment_mode: v.picklist(DEPLOYMENT_MODES),
  service_id: text,
});

const templateFields = v.object({
  name: text,
  version: text,
  status: v.picklist(TEMPLATE_STATUSES),
  spec: v.pipe(jsonText, templateSpec),
  revision: integer,
  created_at: integer,
  updated_at: integer,
  used_at: v.optional(integer),
});

function parseTemplate(modelId: string, id: string, fields: Fields): TemplateRecord {
  const {
    created_at: createdAt,
    updated_at: updatedAt,
    used_at: usedAt = null,
    ...template
  } = parseRecord(`${modelId} template ${id}`, templateFields, fields);
  return { id, modelId, ...template, createdAt, updatedAt, usedAt };
}
