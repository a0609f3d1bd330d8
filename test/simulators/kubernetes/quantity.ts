const SUFFIXES: Readonly<Record<string, number>> = {
  '': 1,
  m: 1e-3,
  k: 1e3,
  M: 1e6,
  G: 1e9,
  T: 1e12,
  P: 1e15,
  Ki: 2 ** 10,
  Mi: 2 ** 20,
  Gi: 2 ** 30,
  Ti: 2 ** 40,
  Pi: 2 ** 50,
};

/** `500m`, `4Gi`, `1e3`: as a number; undefined for what is no quantity. */
export function parseQuantity(quantity: unknown): number | undefined {
  if (typeof quantity === 'number') return quantity;
  if (typeof quantity !== 'string') return undefined;
  const found = /^([+-]?\d+(?:\.\d*)?(?:[eE][+-]?\d+)?)([a-zA-Z]*)$/.exec(quantity);
  const factor = SUFFIXES[found?.[2] ?? ''];
  return found === null || factor === undefined ? undefined : Number(found[1]) * factor;
}

export type Resources = Record<string, number>;

interface Requesting {
  resources?: { requests?: Record<string, string>; limits?: Record<string, string> };
  restartPolicy?: string;
}

function requestsOf({ resources = {} }: Requesting): Resources {
  const asked = { ...resources.limits, ...resources.requests };
  return Object.fromEntries(
    Object.entries(asked).map(([name, quantity]) => [name, parseQuantity(quantity) ?? 0]),
  );
}

function combine(one: Resources, two: Resources, by: (a: number, b: number) => number): Resources {
  const names = new Set([...Object.keys(one), ...Object.keys(two)]);
  return Object.fromEntries(
    [...names].map((name) => [name, by(one[name] ?? 0, two[name] ?? 0)] as const),
  );
}

const plus = (a: number, b: number): number => a + b;

/**
 * What a pod takes of its node: its containers and native sidecars together, or more where a plain
 * init container wants more beside the sidecars before it (k8s.io/component-helpers/resource).
 */
export function podRequests(spec: {
  containers: Requesting[];
  initContainers?: Requesting[];
}): Resources {
  let running: Resources = {};
  let highest: Resources = {};
  for (const container of spec.initContainers ?? []) {
    const own = requestsOf(container);
    const now = combine(running, own, plus);
    if (container.restartPolicy === 'Always') running = now;
    highest = combine(highest, now, Math.max);
  }
  for (const container of spec.containers) running = combine(running, requestsOf(container), plus);
  return combine(highest, running, Math.max);
}
