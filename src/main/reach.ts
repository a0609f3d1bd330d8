import type { Leasing } from '../../processors/leasing.ts';
import { siteOfCallers } from '../../processors/callers-machine.ts';
import { hostedEngines } from '../../processors/hosted-engine.ts';
import { siteOf } from '../../processors/lease-engine.ts';
import { enginePaths } from '../domain/engines/index.ts';
import { transient } from '../domain/errors.ts';
import { isOnCallersMachine, leasedProvision, machineProvider } from '../domain/provision.ts';
import type { LeaseProvider, MachineProvider, ProvisionRecord } from '../domain/provision.ts';
import type { LeaseCapabilities } from '../resources/lease-contract.ts';
import type {
  HostedSite,
  LeasedSite,
  MachineRuntime,
  MachineSite,
  Runtime,
} from '../runtimes/contract.ts';
import { createEndpointRuntime, createMachineRuntime, createRuntime } from '../runtimes/index.ts';
import type { Machines } from '../runtimes/ssh/machine-runtime.ts';
import { checkKeyFile } from '../runtimes/ssh/keys.ts';
import { engineParts } from './engine-parts.ts';
import { openLeasing } from './leasing.ts';
import type { System } from './system.ts';

/** How this process reaches engines, and leases machines for them. */
export interface Reach {
  runtime: Runtime;
  /** Null where this process has no key for machines. */
  machines: MachineRuntime | null;
  /** Null where no provider leases, or this process does not log in to machines. */
  leasing: Leasing | null;
  /** Ends the connections to machines that `machines` and looks have. */
  close(): Promise<void>;
}

/** How engines run on a machine of the caller's, which has what those have that its target leases out. */
const CALLERS_FORMS = { runpod: 'process', lambdaCloud: 'docker' } as const;

/**
 * Opens what the settings let this process reach; engines on leased machines, and on the caller's, where it has the key that machines let
 * in. Rejects with InvalidInput where settings or the key file are of no use.
 *
 * @param now Redis' time, ms
 */
export async function openReach(system: System, now: () => number): Promise<Reach> {
  const { settings, patient } = system;
  const endpoint = createEndpointRuntime(settings);
  const needsKey = settings.provisioners.some((each) => machineProvider(each) !== null);
  const isHosted = settings.provisioners.includes('kubernetes');
  if (settings.sshKeyFile === undefined && (needsKey || !isHosted)) {
    return { runtime: endpoint, machines: null, leasing: null, close: async () => {} };
  }
  const privateKey =
    settings.sshKeyFile === undefined ? null : (await checkKeyFile(settings.sshKeyFile)).privateKey;
  const machines = privateKey === null ? null : openMachines(privateKey);

  function openMachines(key: string): Machines {
    return createMachineRuntime({
      ...engineParts(settings),
      privateKey: key,
      engineForm: (provider, isCallers) =>
        isCallers === true ? CALLERS_FORMS[provider] : formOf(provider),
      modelCachePath(provider) {
        const isKept = (leasing?.modelCache(provider) ?? null) !== null;
        return isKept ? capabilities(provider).modelCachePath : null;
      },
    });
  }
  const leasing = await openLeasing(system, { machines, now });

  function capabilities(provider: LeaseProvider): LeaseCapabilities {
    const manager = leasing?.manager(provider) ?? null;
    if (manager !== null) return manager.capabilities;
    throw transient('lease.no_settings', `PROVISIONER of this process does not name ${provider}`);
  }

  function formOf(provider: MachineProvider): 'process' | 'docker' {
    return capabilities(provider).engineForm === 'docker' ? 'docker' : 'process';
  }

  function siteNow(provision: ProvisionRecord): MachineSite | null {
    if (isOnCallersMachine(provision)) return siteOfCallers(provision);
    return leasing === null ? null : siteOf(provision, leasing);
  }

  const { connectTimeout } = settings;
  async function find(address: string): Promise<LeasedSite | HostedSite> {
    const { jobs, provisions } = patient.store;
    const id = leasedProvision(address);
    const provision = id === null ? null : await provisions.get(id);
    const hosted = provision === null ? null : hostedEngines(provision, leasing);
    const site = provision === null ? null : siteNow(provision);
    const job = provision === null ? null : await jobs.get(provision.job);
    const spec = job?.options.resources?.spec;
    const paths = spec && enginePaths(spec.engine);
    if (hosted !== null) return { ...(await hosted.engines.way(hosted.machine)), ...paths };
    if (site !== null) return { ...site, ...paths };
    throw transient('lease.no_machine', `${address} has no machine that could be logged in to now`);
  }
  const runtime = createRuntime({ endpoint, privateKey, siteOf: find, connectTimeout });
  return {
    runtime,
    machines,
    leasing,
    async close() {
      await Promise.all([runtime.close(), machines?.close(), leasing?.close()]);
    },
  };
}
