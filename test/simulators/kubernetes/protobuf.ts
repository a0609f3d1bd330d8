import { readFileSync } from 'node:fs';
import { isRecord } from './objects.ts';

/*
 * Reads what kubectl since 1.31 sends when it makes an object by itself (`kubectl create secret …`):
 * protocol buffers in an envelope. protobuf.txt names the fields, one message a line, as the
 * generated.proto files of k8s.io/api 1.34 and k8s.io/apimachinery do: NUMBER:NAME:TYPE, `[]` behind
 * a list and `{}` behind a map of strings to it.
 */

interface Field {
  name: string;
  type: string;
  many: '' | '[]' | '{}';
}

type Message = ReadonlyMap<number, Field>;
type Value = number | Buffer;

const MAGIC = Buffer.from('k8s\0');
/** Fields that Go embeds: in JSON their own fields stand in their place. */
const EMBEDDED = new Set([
  'volumeSource',
  'handler',
  'localObjectReference',
  'ephemeralContainerCommon',
]);

let messages: ReadonlyMap<string, Message> | undefined;

function parseField(text: string): [number, Field] {
  const [number = '', name = '', rest = ''] = text.split(':');
  const type = rest.replace(/(\[\]|\{\})$/, '');
  const many = rest.slice(type.length) as Field['many'];
  return [Number(number), { name, type, many }];
}

function load(): ReadonlyMap<string, Message> {
  const text = readFileSync(new URL('protobuf.txt', import.meta.url), 'utf8');
  const lines = text.trim().split('\n');
  return new Map(
    lines.map((line) => {
      const [name = '', ...fields] = line.split(' ');
      return [name, new Map(fields.map(parseField))];
    }),
  );
}

/** Each field's number and value, in the order in which they come. */
function* fieldsOf(bytes: Buffer): Generator<[number, Value]> {
  let at = 0;
  function varint(): bigint {
    let value = 0n;
    for (let shift = 0n; ; shift += 7n) {
      const byte = bytes[at] ?? 0;
      at += 1;
      value |= BigInt(byte & 127) << shift;
      if (byte < 128) return value;
    }
  }
  while (at < bytes.length) {
    const tag = Number(varint());
    const wire = tag & 7;
    if (wire === 0) yield [tag >>> 3, Number(BigInt.asIntN(64, varint()))];
    else if (wire === 2) {
      const length = Number(varint());
      yield [tag >>> 3, bytes.subarray(at, at + length)];
      at += length;
    } else throw new Error(`wire type ${wire} is none of Kubernetes`);
  }
}

function plain(bytes: Buffer): Map<number, Value> {
  return new Map(fieldsOf(bytes));
}

const textOf = (value: Value | undefined): string =>
  Buffer.isBuffer(value) ? value.toString() : '';

/** Types that JSON writes otherwise than field by field. */
const SPECIAL: Readonly<Record<string, (bytes: Buffer) => unknown>> = {
  Quantity: (bytes) => textOf(plain(bytes).get(1)),
  Time: (bytes) => {
    const seconds = Number(plain(bytes).get(1) ?? 0);
    return new Date(seconds * 1000).toISOString().replace('.000', '');
  },
  MicroTime: (bytes) => {
    const fields = plain(bytes);
    return new Date(
      Number(fields.get(1) ?? 0) * 1000 + Number(fields.get(2) ?? 0) / 1e6,
    ).toISOString();
  },
  IntOrString: (bytes) => {
    const fields = plain(bytes);
    return fields.get(1) === 1 ? textOf(fields.get(3)) : (fields.get(2) ?? 0);
  },
};

function decodeValue(type: string, value: Value): unknown {
  if (!Buffer.isBuffer(value)) return type === 'bool' ? value === 1 : value;
  if (type === 'string') return value.toString();
  if (type === 'bytes') return value.toString('base64');
  return SPECIAL[type]?.(value) ?? decodeMessage(type, value);
}

function put(object: Record<string, unknown>, { name, type, many }: Field, value: Value): void {
  if (many === '{}' && Buffer.isBuffer(value)) {
    const entry = plain(value);
    const map = isRecord(object[name]) ? object[name] : {};
    map[textOf(entry.get(1))] = decodeValue(type, entry.get(2) ?? Buffer.alloc(0));
    object[name] = map;
    return;
  }
  const decoded = decodeValue(type, value);
  if (many === '[]') {
    const list: unknown[] = Array.isArray(object[name]) ? object[name] : [];
    object[name] = [...list, decoded];
  } else if (EMBEDDED.has(name)) Object.assign(object, decoded);
  // Go writes empty texts where JSON leaves them out.
  else if (decoded !== '') object[name] = decoded;
}

function decodeMessage(type: string, bytes: Buffer): Record<string, unknown> {
  messages ??= load();
  const message = messages.get(type);
  const object: Record<string, unknown> = {};
  for (const [number, value] of fieldsOf(bytes)) {
    const field = message?.get(number);
    if (field !== undefined) put(object, field, value);
  }
  return object;
}

/** The object in an envelope, as JSON has it; undefined for a kind that protobuf.txt does not name. */
export function decodeProtobuf(body: Buffer): Record<string, unknown> | undefined {
  if (!body.subarray(0, MAGIC.length).equals(MAGIC)) return undefined;
  const envelope = plain(body.subarray(MAGIC.length));
  const [meta, raw] = [envelope.get(1), envelope.get(2)];
  const types = Buffer.isBuffer(meta) ? plain(meta) : new Map<number, Value>();
  const [apiVersion, kind] = [textOf(types.get(1)), textOf(types.get(2))];
  messages ??= load();
  if (!messages.has(kind)) return undefined;
  const object = decodeMessage(kind, Buffer.isBuffer(raw) ? raw : Buffer.alloc(0));
  // The zero time, which a client sends for a time that it does not know.
  if (isRecord(object['metadata'])) delete object['metadata']['creationTimestamp'];
  return { apiVersion, kind, ...object };
}
