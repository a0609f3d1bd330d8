import { listedView } from '../console/machines.ts';
import { machineListSchema } from '../schemas/console.ts';
import { EXAMPLE_IDS } from './examples.ts';
import type { Docs } from './operation.ts';

const machine = listedView({
  provider: 'runpod',
  machine: {
    id: '7g2k1f0a9x3b5c',
    name: 'sl-5f0c1a9e-k3v9x1m7q2w8r5t4-1-t8wq9c',
    state: 'running',
    ssh: null,
    region: 'EU-SE-1',
    gpuType: 'NVIDIA L40S',
    gpuCount: 1,
    pricePerHour: 0.86,
    createdAt: 1_768_469_402_000,
    reason: '',
    raw: null,
  },
  verdict: { is: 'wanted', adopt: null },
  record: {
    id: EXAMPLE_IDS.provision,
    job: EXAMPLE_IDS.job,
    state: 'serving',
    attempts: [],
    current: 1,
    handedTo: null,
    isDestroying: false,
  },
});

export const machineDocs: Docs = {
  '/api/v1/machines': {
    get: {
      tag: 'Provisions',
      summary: 'List what is leased by the word of the providers',
      description:
        'All machines that bear the name of this deployment, with the provision that has each. The sweeper destroys ' +
        'what is `unwanted` at once, and an `orphan`, which no record names, as soon as no `reason` speaks against it.',
      answer: {
        description: 'All machines, and the providers that did not answer.',
        schema: machineListSchema,
        example: { machines: [machine], failures: [] },
      },
    },
  },
};
