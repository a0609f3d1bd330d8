/** Most parts of an object, as Amazon has it and all others after it. */
export const MOST_PARTS = 10_000;
/** More than a segment has when it is closed (8 MiB, its last answer and its headers): each is one request, not four. */
export const PART_BYTES = 9 * 2 ** 20;
/** So many parts are of one size, then they double: some stores want long runs of equal ones for what they do at night. */
const RUN = 1_000;
/** With a first part of 8 MiB, let alone 9, 10,000 parts are over the 5 TiB that a store takes. */
const MOST_TIMES = 208;

export interface PartSizes {
  first: number;
  /** All parts are as large as the first. */
  isEqual: boolean;
}

/** Bytes of the `n`th part, from 1, of an object whose length nobody knows. */
export function partBytes(n: number, { first, isEqual }: PartSizes): number {
  if (isEqual) return first;
  return first * Math.min(2 ** Math.floor((n - 1) / RUN), MOST_TIMES);
}

/** Longest object that can be written. */
export function mostBytes(sizes: PartSizes): number {
  let bytes = 0;
  for (let n = 1; n <= MOST_PARTS; n += RUN) bytes += RUN * partBytes(n, sizes);
  return bytes;
}

export interface Part {
  /** From 1. */
  n: number;
  bytes: Buffer;
  /** Nothing comes after it; an object has one such part, which may be empty if it is the only one. */
  isLast: boolean;
}

const FIRST_ROOM = 64 * 1024;

/**
 * Cuts a source, of which `expected` bytes are known to come, into parts. Whoever pushes the memory of a part that was sent to `free` sees it used again, so that a
 * long upload makes no garbage.
 */
export async function* gatherParts(
  source: AsyncIterable<Uint8Array>,
  sizes: PartSizes,
  free: Buffer[],
  expected = FIRST_ROOM,
): AsyncGenerator<Part> {
  let n = 1;
  let size = partBytes(n, sizes);
  // Most objects are small: where nobody knows, room grows with them.
  let room: Buffer = Buffer.allocUnsafeSlow(Math.min(expected, size));
  let used = 0;
  for await (const chunk of source) {
    for (let at = 0; at < chunk.length;) {
      if (used === size) {
        yield { n, bytes: room.subarray(0, used), isLast: false };
        n += 1;
        size = partBytes(n, sizes);
        room = reuse(free, size);
        used = 0;
      }
      const taken = Math.min(chunk.length - at, size - used);
      if (used + taken > room.length) room = grow(room, used, Math.min(size, 2 * (used + taken)));
      room.set(chunk.subarray(at, at + taken), used);
      used += taken;
      at += taken;
    }
  }
  yield { n, bytes: room.subarray(0, used), isLast: true };
}

function grow(room: Buffer, used: number, length: number): Buffer {
  const larger = Buffer.allocUnsafeSlow(length);
  room.copy(larger, 0, 0, used);
  return larger;
}

function reuse(free: Buffer[], size: number): Buffer {
  const found = free.pop();
  if (found !== undefined && found.length >= size) return found;
  free.length = 0;
  return Buffer.allocUnsafeSlow(size);
}
