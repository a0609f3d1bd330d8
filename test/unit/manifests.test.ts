import { expect, test } from 'vitest';
import { parseManifests, readManifests, readText } from '../support/deploy/manifests.ts';
import { faultsOf } from '../support/deploy/schemas.ts';

const ALL = [...readManifests('config/kubernetes'), ...readManifests('docker/kubernetes')];

test.for(ALL.map((object) => [`${object.source}: ${object.kind}`, object] as const))(
  '%s is what Kubernetes takes',
  async ([, object]) => {
    expect(await faultsOf(object)).toEqual([]);
  },
);

const TEMPLATE = 'config/kubernetes/job-template.yaml';
const SCALED = 'docker/kubernetes/components/autoscaling/scaled-object.yaml';

// The schemas alone pass every field that they do not know.
test.for([
  [TEMPLATE, 'backoffLimit: 10', 'backofLimit: 10', '/spec/backofLimit is unknown'],
  [TEMPLATE, 'failureThreshold: 1800', 'failureTreshold: 1800', 'failureTreshold is unknown'],
  [TEMPLATE, 'sizeLimit: 4Gi', 'limit: 4Gi', '/emptyDir/limit is unknown'],
  [TEMPLATE, 'containerPort: 8000', "containerPort: '8000'", '/containerPort type'],
  [TEMPLATE, 'podReplacementPolicy: Failed', 'podReplacementPolicy: Never', 'enum'],
  [TEMPLATE, 'fieldPath: metadata.uid', 'path: metadata.uid', 'required'],
  [SCALED, 'maxReplicaCount: 20', 'maxReplicas: 20', 'maxReplicas'],
  [SCALED, "threshold: '4'", 'threshold: 4', '/spec/triggers/0/metadata/threshold'],
] as const)('in %s, %s as %s is found', async ([path, text, become, fault]) => {
  const whole = readText(path);
  expect(whole).toContain(text);
  const [object] = parseManifests(whole.replace(text, become), path);
  const faults = object === undefined ? [] : await faultsOf(object);
  expect(faults.join('\n')).toContain(fault);
});
