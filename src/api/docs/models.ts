import * as v from 'valibot';
import { createModelSchema, listModelsSchema, modelView } from '../console/models.ts';
import { changeTemplateSchema, createTemplateSchema } from '../console/template-schema.ts';
import { listTemplatesSchema, templateView } from '../console/templates.ts';
import {
  modelListSchema,
  modelSchema,
  templateListSchema,
  templateSchema,
} from '../schemas/console.ts';
import { EXAMPLE_MODEL, EXAMPLE_TEMPLATE } from './examples.ts';
import type { Docs, Operation } from './operation.ts';

const model = modelView(EXAMPLE_MODEL);
const template = templateView(EXAMPLE_TEMPLATE);

/** What a template needs; everything else has a default. */
const spec = {
  engine: { type: 'vllm', version: '0.11.0', image: 'vllm/vllm-openai:v0.11.0' },
  model_source: { type: 'huggingface', uri: 'Qwen/Qwen2.5-7B-Instruct' },
  accelerator: { type: 'NVIDIA H100', count: 1 },
  engine_args: { max_num_seqs: '256' },
  supported_endpoints: ['/v1/chat/completions'],
};

const change: Operation = {
  tag: 'Models',
  summary: 'Change a deployment template',
  description:
    'What is left out stays. Once a job has used it, only `status` may change: make a new version.',
  body: { schema: changeTemplateSchema, example: { status: 'deprecated' } },
  answer: { description: 'The template as it now is.', schema: templateSchema, example: template },
};

const nothing = { description: 'It is gone.', schema: v.object({}), example: {} };

const TEMPLATES = '/api/v1/models/:id/deployment-templates';

export const modelDocs: Docs = {
  '/api/v1/models': {
    get: {
      tag: 'Models',
      summary: 'List models',
      query: listModelsSchema,
      answer: {
        description: 'The models that match.',
        schema: modelListSchema,
        example: { models: [model] },
      },
    },
    post: {
      tag: 'Models',
      summary: 'Add a model',
      description: 'Its id is made of its name unless it is given.',
      body: {
        schema: createModelSchema,
        example: { name: 'Sim Model', serving_name: 'sim-model', categories: ['LLM'] },
      },
      answer: { description: 'The model.', schema: modelSchema, example: model },
    },
  },
  '/api/v1/models/:id': {
    get: {
      tag: 'Models',
      summary: 'Look at a model',
      answer: { description: 'The model.', schema: modelSchema, example: model },
    },
    delete: {
      tag: 'Models',
      summary: 'Delete a model that has no templates',
      answer: nothing,
    },
  },
  [TEMPLATES]: {
    get: {
      tag: 'Models',
      summary: 'List the deployment templates of a model',
      query: listTemplatesSchema,
      answer: {
        description: 'The templates that match.',
        schema: templateListSchema,
        example: { templates: [template] },
      },
    },
    post: {
      tag: 'Models',
      summary: 'Add a deployment template, or a version of one',
      description: 'The product of `parallelism` must be the number of GPUs.',
      body: {
        schema: createTemplateSchema,
        example: { name: 'h100', version: 'v1.0.0', status: 'active', spec },
      },
      answer: { description: 'The template.', schema: templateSchema, example: template },
    },
  },
  [`${TEMPLATES}/resolve`]: {
    get: {
      tag: 'Models',
      summary: 'Find a template by name',
      description: 'Without `version` the active template of the highest version.',
      query: v.object({ name: v.string(), version: v.optional(v.string()) }),
      answer: { description: 'The template.', schema: templateSchema, example: template },
    },
  },
  [`${TEMPLATES}/by-name/:name`]: {
    get: {
      tag: 'Models',
      summary: 'Find a template by name, as part of the path',
      query: v.object({ version: v.optional(v.string()) }),
      answer: { description: 'The template.', schema: templateSchema, example: template },
    },
  },
  [`${TEMPLATES}/:template`]: {
    get: {
      tag: 'Models',
      summary: 'Look at a deployment template',
      answer: { description: 'The template.', schema: templateSchema, example: template },
    },
    put: change,
    patch: change,
    delete: {
      tag: 'Models',
      summary: 'Delete a deployment template that no job has used',
      answer: nothing,
    },
  },
};
