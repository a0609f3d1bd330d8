/**
 * Base URL of an OpenAI-compatible server as records hold it: without trailing slashes, and without the `/v1` that
 * users like to paste. Null for anything but http(s), and for what has credentials, a query or a fragment.
 */
export function engineBaseUrl(text: string): string | null {
  const url = URL.parse(text);
  if (url === null || !/^https?:$/.test(url.protocol)) return null;
  // An empty query or fragment leaves no trace in the parsed URL.
  if (url.username !== '' || url.password !== '' || /[?#]/.test(text)) return null;
  const path = url.pathname.replace(/\/+$/, '').replace(/\/v1$/, '').replace(/\/+$/, '');
  return `${url.origin}${path}`;
}
