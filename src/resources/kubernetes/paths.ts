/** Paths of the API, each ending where a name or a query may follow. */
export function pathOf(
  kind: 'deployments' | 'services' | 'pods' | 'events' | 'jobs',
  namespace: string,
  name?: string,
): string {
  const groups = { deployments: '/apis/apps/v1', jobs: '/apis/batch/v1' } as const;
  const group = kind === 'deployments' || kind === 'jobs' ? groups[kind] : '/api/v1';
  const base = `${group}/namespaces/${encodeURIComponent(namespace)}/${kind}`;
  return name === undefined ? base : `${base}/${encodeURIComponent(name)}`;
}

/** A pod's log; `previous` is that of the container before it was started again. */
export function logPath(
  namespace: string,
  pod: string,
  { container, lines, previous = false }: { container: string; lines: number; previous?: boolean },
): string {
  const query = new URLSearchParams({
    container,
    tailLines: String(lines),
    ...(previous ? { previous: 'true' } : {}),
  });
  return `${pathOf('pods', namespace, pod)}/log?${query.toString()}`;
}

/** Id of what is in a namespace, as attempts are recorded with it. */
export function idOf(namespace: string, name: string): string {
  return `${namespace}/${name}`;
}

/** Throws nothing: an id without a slash is a name in no namespace, which does not exist. */
export function parseId(id: string): { namespace: string; name: string } {
  const at = id.indexOf('/');
  return { namespace: id.slice(0, Math.max(0, at)), name: id.slice(at + 1) };
}
