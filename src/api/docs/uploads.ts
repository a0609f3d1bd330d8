import * as v from 'valibot';
import {
  completeUploadSchema,
  createUploadSchema,
  uploadPartView,
  uploadView,
} from '../openai/uploads.ts';
import { uploadPartSchema, uploadSchema } from '../schemas/openai.ts';
import { EXAMPLE_FILE, EXAMPLE_IDS, EXAMPLE_LINE, EXAMPLE_UPLOAD } from './examples.ts';
import type { Answer, Docs } from './operation.ts';

const pending = uploadView(EXAMPLE_UPLOAD, null, EXAMPLE_UPLOAD.createdAt);

function upload(description: string, example: unknown): Answer {
  return { description, schema: uploadSchema, example };
}

/** The form of a part; its bytes are streamed, so that no schema ever sees them whole. */
const partFormSchema = v.object({
  data: v.pipe(
    v.string(),
    v.metadata({ format: 'binary', description: 'The bytes, at most 64 MB.' }),
  ),
});

export const uploadDocs: Docs = {
  '/v1/uploads': {
    post: {
      tag: 'Uploads',
      summary: 'Begin an upload',
      description:
        '`bytes` is the size of the whole file. An upload that is not completed expires.',
      body: {
        schema: createUploadSchema,
        example: {
          filename: 'questions.jsonl',
          purpose: 'batch',
          bytes: EXAMPLE_LINE.length,
          mime_type: 'application/jsonl',
        },
      },
      answer: upload('The upload, in status `pending`.', pending),
    },
  },
  '/v1/uploads/:id': {
    get: {
      tag: 'Uploads',
      summary: 'Look at an upload',
      answer: upload('The upload.', pending),
    },
  },
  '/v1/uploads/:id/parts': {
    post: {
      tag: 'Uploads',
      summary: 'Send a part of an upload',
      description: 'In any order, and several at once.',
      body: {
        type: 'multipart/form-data',
        schema: partFormSchema,
        example: { data: EXAMPLE_LINE },
      },
      answer: {
        description: 'The part.',
        schema: uploadPartSchema,
        example: uploadPartView(EXAMPLE_IDS.upload, {
          id: EXAMPLE_IDS.part,
          bytes: EXAMPLE_LINE.length,
          createdAt: EXAMPLE_UPLOAD.createdAt,
        }),
      },
    },
  },
  '/v1/uploads/:id/complete': {
    post: {
      tag: 'Uploads',
      summary: 'Make a file of the parts of an upload',
      description: '`part_ids` is the order of the bytes; with `md5` the whole file is checked.',
      body: { schema: completeUploadSchema, example: { part_ids: [EXAMPLE_IDS.part] } },
      answer: upload(
        'The upload with its file.',
        uploadView({ ...EXAMPLE_UPLOAD, status: 'completed' }, EXAMPLE_FILE, 0),
      ),
    },
  },
  '/v1/uploads/:id/cancel': {
    post: {
      tag: 'Uploads',
      summary: 'Drop an upload and its parts',
      answer: upload(
        'The upload, in status `cancelled`.',
        uploadView({ ...EXAMPLE_UPLOAD, status: 'cancelled' }, null, 0),
      ),
    },
  },
};
