import type { Item } from './items.ts';

const NULL = Buffer.from('null');

/** JSON lines with the request beside its answer, each as it was written: `custom_id`, `request`, `response`, `error`. */
export async function* mergedJsonl(items: AsyncIterable<Item[]>): AsyncGenerator<Buffer> {
  for await (const batch of items) {
    yield Buffer.concat(
      batch.flatMap(({ answer, request }) => [
        Buffer.from('{"custom_id":'),
        answer.customId,
        Buffer.from(',"request":'),
        request ?? NULL,
        Buffer.from(',"response":'),
        answer.response,
        Buffer.from(',"error":'),
        answer.error,
        Buffer.from('}\n'),
      ]),
    );
  }
}
