import { BlockList, isIP } from 'node:net';
import { array, assert, constantFrom, integer, oneof, pre, property, tuple } from 'fast-check';
import { describe, expect, test } from 'vitest';
import { isPublicAddress } from '../../src/domain/net-guard.ts';

/** The same networks, as Node's own list of addresses counts them. */
const PRIVATE = new BlockList();
for (const net of [
  '0.0.0.0/8 10.0.0.0/8 100.64.0.0/10 127.0.0.0/8 169.254.0.0/16 172.16.0.0/12 192.0.0.0/24 192.0.2.0/24',
  '192.88.99.0/24 192.168.0.0/16 198.18.0.0/15 198.51.100.0/24 203.0.113.0/24 224.0.0.0/4 240.0.0.0/4',
  '168.63.129.16/32',
].flatMap((line) => line.split(' '))) {
  const [address = '', bits = ''] = net.split('/');
  PRIVATE.addSubnet(address, Number(bits), 'ipv4');
}
const GLOBAL_V6 = new BlockList();
GLOBAL_V6.addSubnet('2000::', 3, 'ipv6');
const PRIVATE_V6 = new BlockList();
for (const net of ['2001::/23', '2001:db8::/32', '2002::/16', '3fff::/20']) {
  const [address = '', bits = ''] = net.split('/');
  PRIVATE_V6.addSubnet(address, Number(bits), 'ipv6');
}

/** Octets and groups at and beside the edges of networks, where a wrong mask shows. */
const octet = oneof(
  integer({ min: 0, max: 255 }),
  constantFrom(0, 9, 10, 11, 63, 64, 88, 99, 100, 113, 127, 128, 168, 169, 172, 192, 198, 203),
  constantFrom(15, 16, 17, 18, 19, 20, 31, 32, 51, 223, 224, 239, 240, 254, 255),
);
const v4 = tuple(octet, octet, octet, octet).map((octets) => octets.join('.'));
const group = oneof(
  integer({ min: 0, max: 0xffff }),
  constantFrom(0, 1, 0x1ff, 0x200, 0x64, 0xdb8, 0x0fff, 0x1000, 0x1fff, 0x2000, 0x2001, 0x2002),
  constantFrom(0x3fff, 0x4000, 0xfc00, 0xfe80, 0xff02, 0xff9b, 0xffff),
);
const v6 = array(group, { minLength: 8, maxLength: 8 }).map((groups) =>
  groups.map((each) => each.toString(16)).join(':'),
);

describe('which addresses are public', () => {
  test('IPv4: as a list of the special networks says', () => {
    assert(
      property(v4, (address) => {
        expect(isPublicAddress(address)).toBe(!PRIVATE.check(address, 'ipv4'));
      }),
      { numRuns: 3_000 },
    );
  });

  test('IPv6: what is given out, but for its special networks', () => {
    assert(
      property(v6, (address) => {
        const isGlobal = GLOBAL_V6.check(address, 'ipv6') && !PRIVATE_V6.check(address, 'ipv6');
        expect(isPublicAddress(address)).toBe(isGlobal);
      }),
      { numRuns: 3_000 },
    );
  });

  test.for([
    '127.0.0.1',
    '10.1.2.3',
    '100.64.0.1',
    '169.254.169.254',
    '168.63.129.16',
    '64:ff9b::168.63.129.16',
    '172.31.255.255',
    '192.168.0.1',
    '0.0.0.0',
    '224.0.0.1',
    '255.255.255.255',
    '::',
    '::1',
    '::ffff:8.8.8.8',
    '::ffff:7f00:1',
    '::127.0.0.1',
    '64:ff9b::10.0.0.1',
    '64:ff9b:1::8.8.8.8',
    '2002:7f00:1::',
    '2001::1',
    '2001:db8::1',
    'fc00::1',
    'fd12:3456::1',
    'fe80::1',
    'fe80::1%eth0',
    'fec0::1',
    'ff02::1',
  ])('%s is not', (address) => {
    expect(isPublicAddress(address)).toBe(false);
  });

  test.for([
    '8.8.8.8',
    '1.1.1.1',
    '168.63.129.15',
    '172.32.0.1',
    '100.128.0.1',
    '223.255.255.255',
    '2606:4700:4700::1111',
    '2a00:1450:4001:81b::200e',
    '64:ff9b::8.8.8.8',
  ])('%s is', (address) => {
    expect(isPublicAddress(address)).toBe(true);
  });

  test('what is no address is neither', () => {
    const parts = constantFrom('1', '10', '256', 'f', '::', ':', '.', 'fe80', 'x', '1.2.3.4', '');
    assert(
      property(array(parts, { maxLength: 9 }), (some) => {
        const text = some.join('');
        // An IPv4 tail elsewhere than at the end, and an empty zone, are the only liberties taken.
        pre(isIP(text) !== 0 || !text.includes('.'));
        expect(isPublicAddress(text) !== null).toBe(isIP(text) !== 0);
      }),
      { numRuns: 3_000 },
    );
  });
});
