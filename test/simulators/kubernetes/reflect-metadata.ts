/*
 * `Reflect.getMetadata` and what belongs to it, which @peculiar/x509 wants of its host through its
 * container of dependencies and which no engine has. The names are those of the proposal that the
 * package `reflect-metadata` implements.
 */

type Store = Map<PropertyKey | undefined, Map<unknown, unknown>>;

const stores = new WeakMap<object, Store>();

function own(target: object, property: PropertyKey | undefined): Map<unknown, unknown> {
  const store: Store = stores.get(target) ?? new Map();
  stores.set(target, store);
  const found = store.get(property) ?? new Map<unknown, unknown>();
  store.set(property, found);
  return found;
}

function get(key: unknown, target: object, property?: PropertyKey): unknown {
  for (
    let at: object | null = target;
    at !== null;
    at = Object.getPrototypeOf(at) as object | null
  ) {
    const values = stores.get(at)?.get(property);
    if (values?.has(key) === true) return values.get(key);
  }
  return undefined;
}

function define(key: unknown, value: unknown, target: object, property?: PropertyKey): void {
  own(target, property).set(key, value);
}

if (!('getMetadata' in Reflect)) {
  Object.assign(Reflect, {
    getMetadata: get,
    defineMetadata: define,
    getOwnMetadata: (key: unknown, target: object, property?: PropertyKey) =>
      own(target, property).get(key),
    hasOwnMetadata: (key: unknown, target: object, property?: PropertyKey) =>
      own(target, property).has(key),
    hasMetadata: (key: unknown, target: object, property?: PropertyKey) =>
      get(key, target, property) !== undefined,
    metadata: (key: unknown, value: unknown) => (target: object, property?: PropertyKey) =>
      define(key, value, target, property),
  });
}
