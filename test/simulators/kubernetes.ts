import process from 'node:process';
import { parseArgs } from 'node:util';
import { startKubernetes } from './kubernetes/simulator.ts';
import type { KubernetesKnobs } from './kubernetes/knobs.ts';
import type { NodeSpec } from './kubernetes/nodes.ts';

const USAGE = `Kubernetes without machines: node test/simulators/kubernetes.ts [FLAGS]
Prints {"listening": URL, "kubeconfig": FILE} once it listens, and ends with all its pods on SIGTERM and SIGINT.

  --port N               0, the default, takes a free one
  --node JSON            {"name", "cpu", "memory", "gpus", "labels", "taints"}; may be repeated
  --pods real|none       real: containers are processes with namespaces of their own (Linux, root);
                         none: pods are objects only
  --knobs JSON           what differs from the defaults of kubernetes/knobs.ts
  --until-stdin-closes   ends when its standard input does
  --help

Images sluice, aibrix/runtime, vllm-mock and vllm run this repository's programs and engine simulator.
Then:  export KUBECONFIG=FILE; kubectl get nodes`;

const FLAGS = {
  port: { type: 'string', default: '0' },
  node: { type: 'string', multiple: true },
  pods: { type: 'string', default: 'real' },
  knobs: { type: 'string', default: '{}' },
  'until-stdin-closes': { type: 'boolean', default: false },
  help: { type: 'boolean', default: false },
} as const;

async function main(): Promise<void> {
  const { values } = parseArgs({ args: process.argv.slice(2), options: FLAGS });
  if (values.help) {
    console.log(USAGE);
    return;
  }
  const { pods } = values;
  if (pods !== 'real' && pods !== 'none') throw new Error('--pods must be real or none');
  const cluster = await startKubernetes({
    port: Number(values.port),
    pods,
    knobs: JSON.parse(values.knobs) as Partial<KubernetesKnobs>, // names and kinds are the caller's to get right
    ...(values.node === undefined
      ? {}
      : { nodes: values.node.map((text) => JSON.parse(text) as NodeSpec) }),
  });
  const end = (): void => void cluster[Symbol.asyncDispose]().then(() => process.exit(0));
  for (const signal of ['SIGTERM', 'SIGINT'] as const) process.once(signal, end);
  if (values['until-stdin-closes']) process.stdin.on('end', end).on('error', end).resume();
  console.log(JSON.stringify({ listening: cluster.url, kubeconfig: cluster.kubeconfig }));
}

if (import.meta.main) {
  try {
    await main();
  } catch (error) {
    console.error(error instanceof Error ? error.message : error);
    process.exit(1); // an open standard input would keep a failed start alive
  }
}
