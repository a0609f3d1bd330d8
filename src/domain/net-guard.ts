/**
 * Which addresses belong to the public internet: everything that the registries of special-purpose addresses (RFC 6890
 * and IANA's lists) leave, but for one address of Azure. A server that sends to URLs of its users must not reach what only its own network reaches:
 * databases, metadata services of clouds, itself.
 */

/** First octets and length of the networks that are nobody's on the public internet. */
const PRIVATE_V4: readonly (readonly [octets: readonly number[], bits: number])[] = [
  [[0], 8],
  [[10], 8],
  [[100, 64], 10],
  [[127], 8],
  // Azure's wire server, public by its number only: from within a machine there it answers for the host.
  [[168, 63, 129, 16], 32],
  [[169, 254], 16],
  [[172, 16], 12],
  [[192, 0, 0], 24],
  [[192, 0, 2], 24],
  [[192, 88, 99], 24],
  [[192, 168], 16],
  [[198, 18], 15],
  [[198, 51, 100], 24],
  [[203, 0, 113], 24],
  [[224], 4],
  [[240], 4],
];

/** Of IPv6 only 2000::/3 is given out, and of that not these: IETF protocols, documentation, 6to4. */
const GLOBAL_V6 = [[0x2000], 3] as const;
const PRIVATE_V6: readonly (readonly [groups: readonly number[], bits: number])[] = [
  [[0x2001, 0], 23],
  [[0x2001, 0xdb8], 32],
  [[0x2002], 16],
  [[0x3fff, 0], 20],
];
/** RFC 6052: where a network without IPv4 puts the IPv4 addresses of the world, in the last 32 bits. */
const NAT64 = [[0x64, 0xff9b, 0, 0, 0, 0], 96] as const;

/** Whether an address is one of the public internet; null for a text that is no address, such as a name. */
export function isPublicAddress(text: string): boolean | null {
  const v4 = parseV4(text);
  if (v4 !== null) return !PRIVATE_V4.some((net) => isWithin(v4, net, 8));
  const v6 = parseV6(text);
  if (v6 === null) return null;
  if (isWithin(v6, NAT64, 16)) {
    const octets = v6.slice(6).flatMap((group) => [group >> 8, group & 0xff]);
    return !PRIVATE_V4.some((net) => isWithin(octets, net, 8));
  }
  return isWithin(v6, GLOBAL_V6, 16) && !PRIVATE_V6.some((net) => isWithin(v6, net, 16));
}

/** Whether the first bits of an address, given in parts of `width` bits, are those of a network. */
function isWithin(
  parts: readonly number[],
  [net, bits]: readonly [readonly number[], number],
  width: number,
): boolean {
  for (let i = 0; i * width < bits; i += 1) {
    const loose = Math.max(0, width - (bits - i * width));
    if ((parts[i] ?? 0) >> loose !== (net[i] ?? 0) >> loose) return false;
  }
  return true;
}

function parseV4(text: string): number[] | null {
  if (!/^\d{1,3}(?:\.\d{1,3}){3}$/.test(text)) return null;
  const octets = text.split('.').map(Number);
  return octets.every((octet) => octet <= 255) ? octets : null;
}

/** Eight groups of an IPv6 address. An interface behind `%` says nothing about the network. */
function parseV6(text: string): number[] | null {
  const [head, tail, more] = (text.split('%')[0] ?? '').split('::').map(parseGroups);
  if (!head || tail === null || more !== undefined) return null;
  if (tail === undefined) return head.length === 8 ? head : null;
  const missing = 8 - head.length - tail.length;
  return missing < 1 ? null : [...head, ...Array<number>(missing).fill(0), ...tail];
}

/** Groups on one side of a `::`; the last one may be written as an IPv4 address. */
function parseGroups(text: string): number[] | null {
  if (text === '') return [];
  const groups: number[] = [];
  for (const part of text.split(':')) {
    const v4 = parseV4(part);
    if (v4 !== null) {
      const [a = 0, b = 0, c = 0, d = 0] = v4;
      groups.push((a << 8) | b, (c << 8) | d);
    } else if (/^[0-9a-fA-F]{1,4}$/.test(part)) groups.push(Number.parseInt(part, 16));
    else return null;
  }
  return groups;
}
