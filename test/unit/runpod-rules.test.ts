import { describe, expect, test } from 'vitest';
import type { MachineWish } from '../../src/resources/lease-contract.ts';
import { offerId, parseOfferId } from '../../src/resources/runpod/offers.ts';
import { paceFor, quotasTold, restAsked } from '../../src/resources/runpod/rate-limit.ts';
import { refusalOf } from '../../src/resources/runpod/refusals.ts';
import { apiOf } from '../../src/resources/runpod/settings.ts';
import { checkWish, pickVolume, placesOf } from '../../src/resources/runpod/wish.ts';

describe('which API is asked', () => {
  test.for([
    [null, null, 'v2', 'https://api.runpod.io/v2'],
    [null, 'v2', 'v2', 'https://api.runpod.io/v2'],
    [null, 'v1', 'v1', 'https://rest.runpod.io/v1'],
    ['https://api.runpod.io', null, 'v2', 'https://api.runpod.io/v2'],
    ['https://api.runpod.io/', 'v1', 'v1', 'https://api.runpod.io/v1'],
    ['https://rest.runpod.io/v1', null, 'v1', 'https://rest.runpod.io/v1'],
    ['https://rest.runpod.io/v1/', null, 'v1', 'https://rest.runpod.io/v1'],
    ['http://127.0.0.1:9/proxy/v2', null, 'v2', 'http://127.0.0.1:9/proxy/v2'],
    ['http://127.0.0.1:9/v1', 'v1', 'v1', 'http://127.0.0.1:9/v1'],
  ] as const)('base URL %s and version %s: %s', ([baseUrl, apiVersion, version, base]) => {
    expect(apiOf({ baseUrl, apiVersion })).toEqual({ version, base });
  });

  test.for([
    ['https://rest.runpod.io/v1', 'v2', 'RUNPOD_API_VERSION is v2'],
    ['rest.runpod.io', null, 'must be an http(s) URL'],
    ['ftp://rest.runpod.io', null, 'must be an http(s) URL'],
    ['https://rest.runpod.io/v2?x=1', null, 'must be an http(s) URL'],
  ] as const)('base URL %s and version %s are refused', ([baseUrl, apiVersion, message]) => {
    expect(() => apiOf({ baseUrl, apiVersion })).toThrow(message);
  });
});

describe('how long it wants to be left alone', () => {
  const now = Date.parse('2026-11-22T12:00:00Z');
  const left = '"minute";r=0;t=12, "hour";r=2800;t=1812, "day";r=49500;t=45012';
  test.for<[what: string, status: number, headers: Record<string, string>, ms: number | null]>([
    ['seconds', 429, { 'retry-after': '7' }, 7000],
    ['a date', 429, { 'retry-after': 'Sun, 22 Nov 2026 12:00:09 GMT' }, 9000],
    ['a date that has passed', 429, { 'retry-after': 'Sun, 22 Nov 2026 11:00:00 GMT' }, 0],
    ['nonsense', 429, { 'retry-after': 'soon' }, null],
    ['nothing', 429, {}, null],
    ['a full window', 429, { ratelimit: left }, 12_000],
    ['both', 429, { 'retry-after': '7', ratelimit: left }, 7000],
    ['the last request of a window', 200, { ratelimit: left }, 12_000],
    ['two full windows', 200, { ratelimit: '"minute";r=0;t=12, "hour";r=0;t=99' }, 99_000],
    ['room in all', 200, { ratelimit: '"minute";r=1;t=12' }, null],
    ['Retry-After of a redirect', 301, { 'retry-after': '7' }, null],
  ])('%s', ([, status, headers, ms]) => {
    expect(restAsked(status, headers, now)).toBe(ms);
  });
});

describe('how often it may be asked', () => {
  const DOCUMENTED = '"minute";q=60;w=60, "hour";q=3000;w=3600, "day";q=50000;w=86400';
  test.for<[what: string, policy: string, perSecond: number, atOnce: number]>([
    ['as documented', DOCUMENTED, 0.55, 15],
    ['a larger account', '"minute";q=180;w=60, "hour";q=7200;w=3600', 1.8, 36],
    ['a minute only', '"minute";q=600;w=60', 6, 120],
    ['a tight one', '"minute";q=2;w=60', 0.02, 1],
    ['a window without a quota', '"minute";q=0;w=60, "hour";q=3600;w=3600', 0.95, 90],
  ])('%s', ([, policy, perSecond, atOnce]) => {
    const pace = paceFor(quotasTold({ 'ratelimit-policy': policy }) ?? []);
    expect(pace.callsPerSecond).toBeCloseTo(perSecond, 2);
    expect(pace.callsAtOnce).toBe(atOnce);
  });

  test.for(['', 'soon', '"minute";q=many;w=60'])('nothing is told by %j', (policy) => {
    expect(quotasTold({ 'ratelimit-policy': policy })).toBeNull();
  });
});

const NONE =
  'There are no longer any instances available with the requested specifications. Please refresh and try again.';

describe('what a refusal means', () => {
  const problem = (detail: string, errors?: string[]) => JSON.stringify({ detail, errors });

  test.for<[text: string, status: number, body: string, kind: string, code: string]>([
    ['no capacity', 400, problem(NONE), 'NoCapacity', 'lease.no_capacity'],
    [
      'no disk',
      400,
      problem('There are no longer any instances available with enough disk space.'),
      'NoCapacity',
      'lease.no_capacity',
    ],
    [
      'no capacity as v1 says it',
      500,
      JSON.stringify({ error: `create pod: ${NONE}` }),
      'NoCapacity',
      'lease.no_capacity',
    ],
    [
      'a rule',
      400,
      problem('exactly one of gpu or cpu must be set'),
      'InvalidInput',
      'lease.refused',
    ],
    ['a gateway', 400, '<html>', 'Transient', 'lease.unknown'],
    [
      'a wrong body',
      422,
      problem('no', ["$: missing property 'x'"]),
      'InvalidInput',
      'lease.refused',
    ],
    ['too large', 413, problem('request body too large'), 'InvalidInput', 'lease.refused'],
    ['no volume', 404, problem('network volume not found'), 'InvalidInput', 'lease.refused'],
    ['no credit', 402, problem('insufficient balance'), 'Permanent', 'lease.quota'],
    ['no access to a pool', 403, problem('access denied'), 'NoCapacity', 'lease.no_capacity'],
    ['Cloudflare', 403, '<html>Error 1010</html>', 'Transient', 'lease.unavailable'],
    ['another key', 401, '{"error":{}}', 'Permanent', 'lease.unauthorized'],
    ['the end of an API', 410, '', 'Permanent', 'lease.retired_api'],
    ['too often', 429, problem('rate limit exceeded'), 'Transient', 'lease.unavailable'],
    ['a conflict', 409, problem('pod state conflict'), 'Transient', 'lease.unknown'],
    ['time over', 408, '', 'Transient', 'lease.unknown'],
    ['an error', 500, problem('Something went wrong.'), 'Transient', 'lease.unknown'],
    ['a bad gateway', 502, '<html>', 'Transient', 'lease.unknown'],
    ['a redirect', 302, '', 'Transient', 'lease.unknown'],
    ['a success of another kind', 202, '', 'Transient', 'lease.unknown'],
  ])('of a create: %s', ([, status, text, kind, code]) => {
    const refused = { status, text, retryAfterMs: null, what: 'POST /pods', creates: true };
    expect(refusalOf({ ...refused, version: 'v2' })).toMatchObject({ kind, code });
  });

  test.for([400, 404, 408, 409, 418, 422, 500, 502, 503])('of a look: %s', (status) => {
    const refused = { status, text: problem(NONE), retryAfterMs: 5, what: 'GET /pods' };
    const error = refusalOf({ ...refused, creates: false, version: 'v1' });
    expect(error).toMatchObject({ code: 'lease.unavailable', retryAfterMs: 5 });
  });

  test('a retired API says which to choose', () => {
    const refused = { status: 410, text: '', retryAfterMs: null, what: 'GET /pods' };
    const { message } = refusalOf({ ...refused, creates: false, version: 'v1' });
    expect(message).toContain('set RUNPOD_API_VERSION=v2');
    expect(message).toContain('RUNPOD_BASE_URL');
  });

  test('it tells the provider’s words, shortened, and none with a key in them', () => {
    const say = (text: string) =>
      refusalOf({
        status: 422,
        text,
        retryAfterMs: null,
        what: 'POST /pods',
        creates: true,
        version: 'v2',
      }).message;
    expect(say(problem('Request validation failed.', ['$.disk: got string']))).toContain(
      'Request validation failed. $.disk: got string',
    );
    expect(say(problem('x'.repeat(5000))).length).toBeLessThan(400);
    const leak = problem('bad', ["$.env: '-----BEGIN OPENSSH PRIVATE KEY-----abc'"]);
    expect(say(leak)).not.toContain('BEGIN');
  });
});

describe('what a wish asks for', () => {
  const wish: MachineWish = {
    name: 'sl-a',
    offer: '2x NVIDIA L40S',
    gpuCount: 2,
    regions: [],
    interruptible: false,
    maxPricePerHour: null,
    image: 'i',
    diskGb: 1,
    authorizedKey: 'a',
    hostKey: 'h',
    modelCache: null,
    sendBefore: Infinity,
  };
  const weights = { id: 'v1', name: 'weights', dataCenter: 'EU-RO-1' };

  test('offers are named by count and type', () => {
    expect(parseOfferId(offerId({ gpuType: 'NVIDIA L4', count: 8 }))).toEqual({
      gpuType: 'NVIDIA L4',
      count: 8,
    });
    for (const id of ['NVIDIA L4', '0x NVIDIA L4', 'x NVIDIA L4', '2xNVIDIA L4', '2x ', '100x a']) {
      expect(parseOfferId(id)).toBeNull();
    }
  });

  test.for<[what: string, changes: Partial<MachineWish>, code: string]>([
    ['a name that is too long', { name: 'n'.repeat(61) }, 'lease.invalid_name'],
    ['no name', { name: '' }, 'lease.invalid_name'],
    ['another number of GPUs', { gpuCount: 1 }, 'lease.unknown_offer'],
    ['no offer', { offer: 'H100' }, 'lease.unknown_offer'],
  ])('refuses %s', ([, changes, code]) => {
    expect(() => checkWish({ ...wish, ...changes }, [])).toThrow(
      expect.objectContaining({ kind: 'InvalidInput', code }),
    );
  });

  test('a catalog that was read tells types that are not rented, and prices, before anything is asked', () => {
    const offer = {
      provider: 'runpod' as const,
      id: wish.offer,
      kind: 'machine' as const,
      type: 'NVIDIA L40S',
      count: 2,
      vramGb: 48,
      pricePerHour: 1.72,
      stock: 'available' as const,
      regions: [],
      architecture: 'x86_64' as const,
      address: '',
      models: [],
      error: '',
      checkedAt: 0,
    };
    expect(checkWish({ ...wish, maxPricePerHour: 1.72 }, [offer])).toBe('NVIDIA L40S');
    expect(checkWish({ ...wish, offer: '3x NVIDIA L40S', gpuCount: 3 }, [offer])).toBe(
      'NVIDIA L40S',
    );
    expect(() => checkWish({ ...wish, maxPricePerHour: 1.71 }, [offer])).toThrow(
      expect.objectContaining({ kind: 'NoCapacity' }),
    );
    expect(() => checkWish({ ...wish, offer: '2x NVIDIA L400' }, [offer])).toThrow(
      expect.objectContaining({ code: 'lease.unknown_offer' }),
    );
  });

  test('a volume is found by id before name, and must be one', () => {
    const twin = { ...weights, id: 'weights' };
    expect(pickVolume([weights], 'v1')).toBe(weights);
    expect(pickVolume([weights], 'weights')).toBe(weights);
    expect(pickVolume([weights, twin], 'weights')).toBe(twin);
    expect(() => pickVolume([weights, { ...weights, id: 'v2' }], 'weights')).toThrow('(v1, v2)');
    expect(() => pickVolume([weights], 'none')).toThrow("no network volume 'none'");
  });

  test('places are asked one after the other, and the region follows the volume', () => {
    expect(placesOf([], [], null)).toEqual([[]]);
    expect(placesOf([], ['A', 'B'], null)).toEqual([['A', 'B']]);
    expect(placesOf(['B', 'A'], ['C'], null)).toEqual([['B'], ['A']]);
    expect(placesOf([], [], weights)).toEqual([['EU-RO-1']]);
    expect(placesOf(['A', 'EU-RO-1'], [], weights)).toEqual([['EU-RO-1']]);
    expect(() => placesOf(['A'], [], weights)).toThrow('is in EU-RO-1');
    expect(() => placesOf([], ['A'], weights)).toThrow('is in EU-RO-1');
  });
});
