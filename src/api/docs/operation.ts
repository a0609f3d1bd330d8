import type * as v from 'valibot';
import type { METHODS } from '../routes.ts';

/** Headings under which the operations stand, in this order. */
export const TAGS = {
  Files: 'Inputs and outputs of batches, as in the API of OpenAI.',
  Uploads: 'Files of many gigabytes, sent in parts.',
  Batches: 'Batches as in the API of OpenAI; the key `aibrix` is the one extension.',
  Jobs: 'The same batches as jobs of the Console API, with all that OpenAI has no words for.',
  Models: 'Models, and the deployment templates that say how they are served.',
  Provisions: 'Machines and engines on which jobs run.',
  Webhooks:
    'Who is told how batches end, signed as [Standard Webhooks](https://www.standardwebhooks.com) are. To verify one, ' +
    'take the headers `webhook-id`, `webhook-timestamp` and `webhook-signature` and the body byte by byte as it came, ' +
    'before any parser. Decode what stands behind `whsec_` in the secret as base64: that is the key. Make ' +
    '`base64(HMAC-SHA256(key, id + "." + timestamp + "." + body))` and compare it, in constant time, with what stands ' +
    'behind `v1,` in each of the signatures, which spaces part: one that is equal is enough. Refuse a timestamp that ' +
    'is more than five minutes away, and an id that you have had before. An endpoint of `/api/v1/webhooks` has the ' +
    "secret that its creation answered; the webhook of a single batch is signed with the server's `WEBHOOK_SECRET`. " +
    'The libraries of Standard Webhooks, and `client.webhooks.unwrap(body, headers, secret)` of the OpenAI SDKs, do all of it.',
  Operations: 'For those who run the server.',
} as const;
export type Tag = keyof typeof TAGS;

/** What an operation answers when all goes well. */
export interface Answer {
  description: string;
  /** 200 unless it says otherwise. */
  status?: number;
  /** `application/json` unless it says otherwise. */
  type?: string;
  schema: v.GenericSchema;
  example?: unknown;
  /** What comes instead where `Accept` asks for another type. */
  also?: Record<string, v.GenericSchema>;
}

/** A request body: what validates it, and one that a server takes as it stands once its ids exist there. */
export interface Body {
  schema: v.GenericSchema;
  /** `application/json` unless it says otherwise. */
  type?: 'application/json' | 'multipart/form-data';
  example: unknown;
  /** True where the body may be left out. */
  optional?: boolean;
}

/** How one method of one path is described. */
export interface Operation {
  tag: Tag;
  /** What it does, as one line without a full stop. */
  summary: string;
  /** What the summary leaves open; Markdown. */
  description?: string;
  /** An object schema of the query string. */
  query?: v.GenericSchema & { entries: v.ObjectEntries };
  /** Request headers with a meaning of their own here, by name. */
  headers?: Record<string, string>;
  body?: Body;
  answer: Answer;
}

export type Method = (typeof METHODS)[number];

/** The operations of one path by method. */
export type PathDocs = Partial<Record<Method, Operation>>;

/** Docs by the path of their route, as the route spells it. */
export type Docs = Record<string, PathDocs>;
