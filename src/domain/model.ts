/** Kinds of models that the Console knows. */
export const MODEL_CATEGORIES = [
  'LLM',
  'Audio',
  'Image',
  'Video',
  'Vision',
  'Embedding',
  'Reranks',
] as const;
export type ModelCategory = (typeof MODEL_CATEGORIES)[number];

/** What the catalog says of a model, in the words of the wire: it is kept and shown as it was given. */
export interface ModelInfo {
  /** For people. */
  name: string;
  icon_bg: string;
  icon_text: string;
  icon_text_color: string;
  categories: ModelCategory[];
  is_new: boolean;
  pricing: {
    uncached_input: string;
    cached_input: string;
    output: string;
    per_minute: string;
    per_image: string;
  };
  context_length: string;
  description: string;
  metadata: { state: string; created_on: string; provider_name: string; hugging_face: string };
  specification: { calibrated: boolean; mixture_of_experts: boolean; parameters: string };
  tags: string[];
  /** What requests name as `body.model`; empty: nobody said. */
  serving_name: string;
}

/** A model of the catalog. Its time is Redis time in ms. */
export interface ModelRecord extends ModelInfo {
  id: string;
  createdAt: number;
}

const MODEL_ID = /^[\p{L}\p{N}._-]{1,134}$/u;

/** Only such ids become part of a key and of a URL; any other names nothing that exists. */
export function isModelId(text: string): boolean {
  return MODEL_ID.test(text);
}

/** The id of a model whose creator named none: `Qwen2.5 7B` is `model-qwen2.5-7b`. */
export function modelIdOf(name: string): string {
  return `model-${name.toLowerCase().replaceAll(/[^\p{L}\p{N}._-]/gu, '-')}`;
}
