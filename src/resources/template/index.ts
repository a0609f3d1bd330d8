import { permanent, SluiceError, transient } from '../../domain/errors.ts';
import type { LeaseProvider } from '../../domain/provision.ts';
import type { Offer } from '../contract.ts';
import type { LeaseManager, Machine, MachineWish, Pace } from '../lease-contract.ts';

/**
 * Where the next provider begins: copy this folder, speak the provider's API where it says so, run
 * `test/conformance/lease-suite.ts` on it, and register it (ARCHITECTURE.md, "Another provider"). It compiles, leases
 * nothing, and is not registered.
 */
interface TemplateSettings {
  /** Never logged, and never in a `raw`. */
  apiKey: string;
  baseUrl: string;
}

interface TemplateOptions {
  /** Holds calls back until the credential may be used; every call of the API goes through it first. */
  pace: Pace;
  /** Redis' time, ms: what `sendBefore` is compared with. */
  now: () => number;
}

export function createTemplateManager(
  settings: TemplateSettings,
  { pace, now }: TemplateOptions,
): LeaseManager {
  return {
    // The name that PROVISIONER gives it, from LEASE_PROVIDERS.
    provider: 'template' as string as LeaseProvider,
    capabilities: {
      interruptible: false,
      modelCache: null,
      modelCachePath: '/models',
      // `docker` on virtual machines with Docker, `process` where a container is what is leased.
      engineForm: 'docker',
      bootDeadlineMs: 20 * 60_000,
      // As long as a machine that was just created may be missing in a list: measure it, and double it.
      listLagMs: 60_000,
    },
    async catalog(): Promise<Offer[]> {
      await pace('catalog');
      return [];
    },
    async create(wish) {
      const [there] = await named(wish.name);
      if (there !== undefined) return there;
      await pace('create');
      // After the wait for its turn: whoever recorded that a create comes reckons with it until then, and no longer.
      if (now() > wish.sendBefore) {
        throw transient('lease.unavailable', 'The create would come too late; nothing was sent.');
      }
      return order(wish);
    },
    async describe(id) {
      await pace('look');
      // Null for a 404 only; anything that is no whole answer is `lease.unavailable`.
      return notYet(`look at ${id}`);
    },
    async destroy(id) {
      await pace('release');
      // A 404 is `gone`, too; an accepted terminate is `going`, whatever it promises.
      return notYet(`give ${id} back`);
    },
    list: async (stamp) => (await all()).filter(({ name }) => name.startsWith(stamp)),
  };

  /** Those of this name that can be used, oldest first: one of them is adopted instead of a second one made. */
  async function named(name: string): Promise<Machine[]> {
    const same = (await all()).filter((machine) => machine.name === name);
    return same
      .filter(({ state }) => state === 'booting' || state === 'running')
      .toSorted((one, other) => (one.createdAt ?? Infinity) - (other.createdAt ?? Infinity));
  }

  /** Every page and region, or a rejection: less than all would pass for "it is gone". */
  async function all(): Promise<Machine[]> {
    await pace('look');
    return [];
  }

  /**
   * The one call that costs money. Each refusal says by its class whether there may be a machine now: a 5xx, a time-out, a
   * broken connection or nonsense is `lease.unknown`, and everything else means that there is certainly none.
   */
  async function order(wish: MachineWish): Promise<Machine> {
    if (settings.apiKey === '') {
      throw permanent('lease.unauthorized', `${settings.baseUrl} needs an API key.`);
    }
    throw new SluiceError('NoCapacity', 'lease.no_capacity', `There is no '${wish.offer}' here.`);
  }

  function notYet(what: string): never {
    throw transient('lease.unavailable', `${settings.baseUrl} is no provider that could ${what}.`);
  }
}
