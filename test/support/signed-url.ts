import { createHash, createHmac } from 'node:crypto';

/** Why an address is refused that signs itself (SigV4 in the query), or null. */
export type Refusal = 'unsigned' | 'expired' | 'SignatureDoesNotMatch' | null;

function hmac(key: string | Buffer, text: string): Buffer {
  return createHmac('sha256', key).update(text).digest();
}

function escaped(text: string): string {
  return encodeURIComponent(text).replaceAll(
    /[!'()*]/g,
    (each) => `%${each.charCodeAt(0).toString(16).toUpperCase()}`,
  );
}

/** "20261122T143534Z" in ms since 1970. */
function timeOf(date: string): number {
  return Date.parse(
    date.replace(/^(\d{4})(\d\d)(\d\d)T(\d\d)(\d\d)(\d\d)Z$/, '$1-$2-$3T$4:$5:$6Z'),
  );
}

/**
 * Checks an address as Amazon describes it ("Authenticating Requests: Using Query Parameters"), by nothing but what
 * came: the test server believes everything.
 */
export function refusalOf(
  { method, url, host }: { method: string; url: string; host: string },
  secret: string,
  now = Date.now(),
): Refusal {
  const { pathname, searchParams } = new URL(url, 'http://host');
  const given = searchParams.get('X-Amz-Signature');
  const date = searchParams.get('X-Amz-Date') ?? '';
  const [, day = '', region = '', service = ''] =
    searchParams.get('X-Amz-Credential')?.split('/') ?? [];
  if (given === null || searchParams.get('X-Amz-SignedHeaders') !== 'host') return 'unsigned';
  const query = [...searchParams]
    .filter(([name]) => name !== 'X-Amz-Signature')
    .map(([name, value]) => `${escaped(name)}=${escaped(value)}`)
    .toSorted()
    .join('&');
  const canonical = [method, pathname, query, `host:${host}`, '', 'host', 'UNSIGNED-PAYLOAD'];
  const print = createHash('sha256').update(canonical.join('\n')).digest('hex');
  const scope = `${day}/${region}/${service}/aws4_request`;
  const text = ['AWS4-HMAC-SHA256', date, scope, print].join('\n');
  let key: string | Buffer = `AWS4${secret}`;
  for (const each of [day, region, service, 'aws4_request']) key = hmac(key, each);
  if (hmac(key, text).toString('hex') !== given) return 'SignatureDoesNotMatch';
  const ends = timeOf(date) + 1_000 * Number(searchParams.get('X-Amz-Expires'));
  return now < ends ? null : 'expired';
}
