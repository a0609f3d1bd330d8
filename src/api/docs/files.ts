import * as v from 'valibot';
import { EXPIRES_AFTER_SECONDS, UPLOAD_PURPOSES } from '../../domain/file.ts';
import { contentSchema } from '../convert/query.ts';
import { linkBodySchema, linkView } from '../openai/file-link.ts';
import { listSchema } from '../openai/files.ts';
import {
  deletedFileSchema,
  fileLinkSchema,
  fileListSchema,
  fileSchema,
} from '../schemas/openai.ts';
import { fileView, pageView } from '../views.ts';
import { EXAMPLE_FILE, EXAMPLE_LINE } from './examples.ts';
import type { Docs, Operation } from './operation.ts';

const SECONDS_RULE = `From ${EXPIRES_AFTER_SECONDS.min} to ${EXPIRES_AFTER_SECONDS.max}.`;
/** The form of an upload; its parts are streamed, so that no schema ever sees them whole. */
const formSchema = v.object({
  file: v.pipe(
    v.string(),
    v.metadata({ format: 'binary', description: 'The file itself, with its name.' }),
  ),
  purpose: v.picklist(UPLOAD_PURPOSES),
  'expires_after[anchor]': v.optional(v.literal('created_at')),
  'expires_after[seconds]': v.optional(
    v.pipe(v.string(), v.regex(/^\d{1,9}$/), v.description(SECONDS_RULE)),
  ),
});

const upload: Operation = {
  tag: 'Files',
  summary: 'Upload a file',
  description:
    'Streamed to storage as it comes. The input of a batch is a JSONL file of purpose `batch`: one request a line, ' +
    'each with a `custom_id` of its own.',
  body: {
    type: 'multipart/form-data',
    schema: formSchema,
    example: { purpose: 'batch', file: EXAMPLE_LINE },
  },
  answer: { description: 'The file.', schema: fileSchema, example: fileView(EXAMPLE_FILE) },
};

const list: Operation = {
  tag: 'Files',
  summary: 'List files',
  description:
    'Newest first unless `order` says otherwise. `after` is the id of the last file seen.',
  query: listSchema,
  answer: {
    description: 'A page of files.',
    schema: fileListSchema,
    example: pageView([fileView(EXAMPLE_FILE)], false),
  },
};

const get: Operation = {
  tag: 'Files',
  summary: 'Look at a file',
  answer: { description: 'The file.', schema: fileSchema, example: fileView(EXAMPLE_FILE) },
};

const content: Operation = {
  tag: 'Files',
  summary: 'Download the bytes of a file',
  description:
    'Compressed where the client takes gzip; unchanged under its ETag. Output and error files of batches also come in ' +
    'other forms, which have no ranges.',
  query: contentSchema,
  headers: { Range: 'One range of bytes, such as `bytes=0-99`, answered 206.' },
  answer: {
    description: 'The bytes; `application/octet-stream` for files that are no JSONL.',
    type: 'application/jsonl',
    schema: v.string(),
    example: `${EXAMPLE_LINE}\n`,
    also: {
      'text/csv': v.string(),
      'application/vnd.apache.parquet': v.string(),
      'application/gzip': v.string(),
    },
  },
};

const link: Operation = {
  tag: 'Files',
  summary: 'Make a link to download a file',
  description:
    'An address at the object store, signed by it: whoever has it can download the file, unconverted, without a key of this ' +
    'server, until `expires_at`: `expires_in` seconds from now, at most seven days, or earlier where the file, or the ' +
    'credentials of the store, end before. Nothing revokes it but deleting the file. It names the store as this server ' +
    'reaches it (`S3_ENDPOINT`, `TOS_ENDPOINT`). A server that keeps files in a folder refuses with `links_not_available`.',
  body: { schema: linkBodySchema, example: { expires_in: 3_600 }, optional: true },
  answer: {
    description: 'The link.',
    schema: fileLinkSchema,
    example: linkView(EXAMPLE_FILE, {
      url: 'https://bucket.s3.eu-central-1.amazonaws.com/files/file-1?X-Amz-Expires=3600&X-Amz-Signature=…',
      expiresAt: 1_795_400_000_000,
    }),
  },
};

const remove: Operation = {
  tag: 'Files',
  summary: 'Delete a file',
  description:
    'For good, with old versions where the bucket keeps them and lets the server delete them. Refused while a batch that is not over has it as its input, or writes it. With an output or error file ' +
    'go the answers that its batch still kept beside it. Of a file in a bucket of yours (`location`) only the record goes.',
  answer: {
    description: 'It is gone.',
    schema: deletedFileSchema,
    example: { id: EXAMPLE_FILE.id, object: 'file', deleted: true },
  },
};

export const fileDocs: Docs = {
  '/v1/files': { get: list, post: upload },
  '/v1/files/:id': { get, delete: remove },
  '/v1/files/:id/content': { get: content },
  '/api/v1/files': { get: list },
  '/api/v1/files/upload': { post: upload },
  '/api/v1/files/:id': { get },
  '/api/v1/files/:id/content': { get: content },
  '/api/v1/files/:id/link': { post: link },
};
