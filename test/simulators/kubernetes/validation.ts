import { isDeepStrictEqual } from 'node:util';
import type { Kind } from './kinds.ts';
import { CONFIG_MAPS, DEPLOYMENTS, JOBS, PODS, REPLICA_SETS, SECRETS, SERVICES } from './kinds.ts';
import type { Container, Deployment, Job, KubeObject, Meta, Pod, PodSpec } from './objects.ts';
import { hasCondition, isRecord } from './objects.ts';
import { parseQuantity } from './quantity.ts';
import { matchesSelector } from './selectors.ts';
import type { FieldError } from './status.ts';

/*
 * What Kubernetes refuses with 422, in its words (k8s.io/kubernetes/pkg/apis/batch/validation and its like). Far from
 * all of it: what people get wrong in pods and Jobs, and everything that makes a Job immutable.
 */

const SUBDOMAIN = /^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$/;
const LABEL = /^[a-z0-9]([-a-z0-9]*[a-z0-9])?$/;
const QUALIFIED = /^([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]$/;
const VALUE = /^(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?$/;

const SUBDOMAIN_RULE =
  "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";
const LABEL_RULE =
  "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')";
const VALUE_RULE =
  "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')";
const KEY_RULE =
  "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')";
const IMMUTABLE = 'field is immutable';

const wrong = (field: string, value: unknown, detail: string): FieldError => ({
  type: 'FieldValueInvalid',
  field,
  value,
  detail,
});
const required = (field: string, detail = ''): FieldError => ({
  type: 'FieldValueRequired',
  field,
  detail,
});
const forbidden = (field: string, detail: string): FieldError => ({
  type: 'FieldValueForbidden',
  field,
  detail,
});
const unsupported = (field: string, value: unknown, known: readonly string[]): FieldError => ({
  type: 'FieldValueNotSupported',
  field,
  value,
  detail: `supported values: ${known.map((one) => `"${one}"`).join(', ')}`,
});

const TOTAL_ANNOTATIONS = 256 * 1024;

function checkKeys(field: string, map: Record<string, unknown> | undefined): FieldError[] {
  return Object.keys(map ?? {}).flatMap((key) => {
    const name = key.slice(key.indexOf('/') + 1);
    const prefix = key.includes('/') ? key.slice(0, key.indexOf('/')) : undefined;
    if (!QUALIFIED.test(name)) return [wrong(field, key, KEY_RULE)];
    if (name.length > 63)
      return [wrong(field, key, 'name part must be no more than 63 characters')];
    if (prefix !== undefined && !SUBDOMAIN.test(prefix)) {
      return [wrong(field, key, `prefix part ${SUBDOMAIN_RULE}`)];
    }
    return [];
  });
}

function checkMeta(metadata: Partial<Meta>, at: string, isLabel: boolean): FieldError[] {
  const { name = '', labels, annotations } = metadata;
  const errors: FieldError[] = [];
  const longest = isLabel ? 63 : 253;
  if (name === '') errors.push(required(`${at}.name`, 'name or generateName is required'));
  else if (!(isLabel ? LABEL : SUBDOMAIN).test(name)) {
    errors.push(wrong(`${at}.name`, name, isLabel ? LABEL_RULE : SUBDOMAIN_RULE));
  } else if (name.length > longest) {
    errors.push(wrong(`${at}.name`, name, `must be no more than ${longest} characters`));
  }
  return [...errors, ...checkMaps(labels, annotations, at)];
}

function checkMaps(
  labels: Record<string, string> | undefined,
  annotations: Record<string, string> | undefined,
  at: string,
): FieldError[] {
  const errors = [
    ...checkKeys(`${at}.labels`, labels),
    ...checkKeys(`${at}.annotations`, annotations),
  ];
  for (const value of Object.values(labels ?? {})) {
    if (value.length > 63) {
      errors.push(wrong(`${at}.labels`, value, 'must be no more than 63 characters'));
    } else if (!VALUE.test(value)) errors.push(wrong(`${at}.labels`, value, VALUE_RULE));
  }
  const size = Object.entries(annotations ?? {})
    .flat()
    .join('').length;
  if (size > TOTAL_ANNOTATIONS) {
    errors.push({
      ...wrong(`${at}.annotations`, undefined, `may not be more than ${TOTAL_ANNOTATIONS} bytes`),
    });
  }
  return errors;
}

function checkResources({ resources = {} }: Container, at: string): FieldError[] {
  const errors: FieldError[] = [];
  for (const part of ['requests', 'limits'] as const) {
    for (const [name, quantity] of Object.entries(resources[part] ?? {})) {
      if (parseQuantity(quantity) === undefined) {
        errors.push(
          wrong(
            `${at}.resources.${part}[${name}]`,
            quantity,
            "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'",
          ),
        );
      }
    }
  }
  for (const [name, quantity] of Object.entries(resources.requests ?? {})) {
    const limit = parseQuantity(resources.limits?.[name]);
    const request = parseQuantity(quantity);
    if (limit !== undefined && request !== undefined && request > limit) {
      errors.push(
        wrong(
          `${at}.resources.requests`,
          quantity,
          `must be less than or equal to ${name} limit of ${resources.limits?.[name]}`,
        ),
      );
    } else if (name.includes('/') && limit !== request) {
      errors.push(
        wrong(
          `${at}.resources.requests`,
          quantity,
          `must be equal to ${name} limit of ${resources.limits?.[name] ?? '0'}`,
        ),
      );
    }
  }
  return errors;
}

function checkMounts(container: Container, at: string, volumes: Set<string>): FieldError[] {
  const seen = new Set<string>();
  return (container.volumeMounts ?? []).flatMap(({ name, mountPath }, index) => {
    const field = `${at}.volumeMounts[${index}]`;
    const errors: FieldError[] = [];
    if (!volumes.has(name)) {
      errors.push({
        ...wrong(`${field}.name`, name, ''),
        type: 'FieldValueInvalid',
        detail: 'Not found',
      });
    }
    if (seen.has(mountPath)) errors.push(wrong(`${field}.mountPath`, mountPath, 'must be unique'));
    seen.add(mountPath);
    return errors;
  });
}

function checkContainer(
  container: Container,
  at: string,
  volumes: Set<string>,
  isInit: boolean,
): FieldError[] {
  const { name, image, restartPolicy } = container;
  const isSidecar = isInit && restartPolicy === 'Always';
  const errors: FieldError[] = [];
  if ((name ?? '') === '') errors.push(required(`${at}.name`));
  else if (!LABEL.test(name)) errors.push(wrong(`${at}.name`, name, LABEL_RULE));
  if ((image ?? '') === '') errors.push(required(`${at}.image`));
  if (isInit && restartPolicy !== undefined && restartPolicy !== 'Always') {
    errors.push(unsupported(`${at}.restartPolicy`, restartPolicy, ['Always']));
  }
  if (!isInit && restartPolicy !== undefined) {
    errors.push(forbidden(`${at}.restartPolicy`, 'may not be set for non-init containers'));
  }
  if (isInit && !isSidecar) {
    for (const probe of ['livenessProbe', 'readinessProbe', 'startupProbe'] as const) {
      if (container[probe] !== undefined) {
        errors.push(
          forbidden(
            `${at}.${probe}`,
            'may not be set for init containers without restartPolicy=Always',
          ),
        );
      }
    }
  }
  return [
    ...errors,
    ...checkEnv(container, at),
    ...checkResources(container, at),
    ...checkMounts(container, at, volumes),
  ];
}

function checkEnv(container: Container, at: string): FieldError[] {
  const errors: FieldError[] = [];
  for (const [index, env] of (container.env ?? []).entries()) {
    const { value = '', valueFrom } = env;
    if ((env.name ?? '') === '') errors.push(required(`${at}.env[${index}].name`));
    if (value !== '' && valueFrom !== undefined) {
      errors.push(
        wrong(
          `${at}.env[${index}].valueFrom`,
          '',
          'may not be specified when `value` is not empty',
        ),
      );
    }
  }
  return errors;
}

function checkPodSpec(spec: PodSpec, at: string): FieldError[] {
  const volumes = new Set((spec.volumes ?? []).map(({ name }) => name));
  const errors: FieldError[] = [];
  if ((spec.containers ?? []).length === 0) errors.push(required(`${at}.containers`));
  const names = new Set<string>();
  const groups = [
    ['initContainers', spec.initContainers ?? []],
    ['containers', spec.containers ?? []],
  ] as const;
  for (const [group, containers] of groups) {
    for (const [index, container] of containers.entries()) {
      const where = `${at}.${group}[${index}]`;
      errors.push(...checkContainer(container, where, volumes, group === 'initContainers'));
      if (names.has(container.name)) {
        errors.push({ ...wrong(`${where}.name`, container.name, 'Duplicate value') });
      }
      names.add(container.name);
    }
  }
  const policies = ['Always', 'OnFailure', 'Never'];
  if (spec.restartPolicy !== undefined && !policies.includes(spec.restartPolicy)) {
    errors.push(unsupported(`${at}.restartPolicy`, spec.restartPolicy, policies));
  }
  return errors;
}

function checkJobNumbers({ spec }: Job): FieldError[] {
  const names = [
    'parallelism',
    'completions',
    'activeDeadlineSeconds',
    'backoffLimit',
    'ttlSecondsAfterFinished',
  ] as const;
  const errors = names.flatMap((name) => {
    const value = spec[name];
    return value !== undefined && value < 0
      ? [wrong(`spec.${name}`, value, 'must be greater than or equal to 0')]
      : [];
  });
  if (spec.completionMode === 'Indexed' && spec.completions === undefined) {
    errors.push(required('spec.completions', 'when completion mode is Indexed'));
  }
  if (!['Indexed', 'NonIndexed'].includes(spec.completionMode ?? 'NonIndexed')) {
    errors.push(unsupported('spec.completionMode', spec.completionMode, ['Indexed', 'NonIndexed']));
  }
  return errors;
}

function checkFailurePolicy({ spec }: Job): FieldError[] {
  const rules = spec.podFailurePolicy?.rules;
  if (rules === undefined) return [];
  const errors: FieldError[] = [];
  const at = 'spec.podFailurePolicy.rules';
  const policy = spec.template.spec?.restartPolicy;
  if (policy !== 'Never') {
    errors.push(
      wrong(
        'spec.template.spec.restartPolicy',
        policy,
        'only "Never" is supported when podFailurePolicy is specified',
      ),
    );
  }
  const containers = [
    ...(spec.template.spec?.containers ?? []),
    ...(spec.template.spec?.initContainers ?? []),
  ];
  const actions = ['Count', 'FailIndex', 'FailJob', 'Ignore'];
  for (const [index, rule] of rules.entries()) {
    const { action, onExitCodes, onPodConditions } = rule;
    if (!actions.includes(action))
      errors.push(unsupported(`${at}[${index}].action`, action, actions));
    if ((onExitCodes === undefined) === ((onPodConditions ?? []).length === 0)) {
      errors.push(
        wrong(
          `${at}[${index}]`,
          '',
          'specifying one of OnExitCodes and OnPodConditions is required',
        ),
      );
    }
    const name = onExitCodes?.containerName;
    if (name !== undefined && !containers.some((one) => one.name === name)) {
      errors.push(
        wrong(
          `${at}[${index}].onExitCodes.containerName`,
          name,
          'must be one of the container or initContainer names in the pod template',
        ),
      );
    }
    if (onExitCodes?.operator === 'In' && onExitCodes.values.includes(0)) {
      errors.push(
        wrong(
          `${at}[${index}].onExitCodes.values[${onExitCodes.values.indexOf(0)}]`,
          0,
          'must not be 0 for the In operator',
        ),
      );
    }
  }
  return errors;
}

function checkJob(job: Job): FieldError[] {
  const { spec } = job;
  if (!isRecord(spec) || !isRecord(spec.template)) return [required('spec.template')];
  const template = spec.template.spec;
  const errors = [...checkJobNumbers(job), ...checkFailurePolicy(job)];
  if (template === undefined) errors.push(required('spec.template.spec'));
  else {
    errors.push(...checkPodSpec(template, 'spec.template.spec'));
    const policy = template.restartPolicy ?? 'Always';
    if (!['OnFailure', 'Never'].includes(policy)) {
      errors.push({
        ...unsupported('spec.template.spec.restartPolicy', policy, ['OnFailure', 'Never']),
      });
    }
  }
  const meta = spec.template.metadata ?? {};
  errors.push(...checkMaps(meta.labels, meta.annotations, 'spec.template'));
  // Pods of a Job carry its name as a label.
  if (job.metadata.name.length > 63) {
    errors.push(
      wrong('spec.template.labels', job.metadata.name, 'must be no more than 63 characters'),
    );
  }
  if (spec.suspend === false && job.spec.manualSelector === true && spec.selector === undefined) {
    errors.push(required('spec.selector'));
  }
  return errors;
}

function checkWorkload(object: Deployment): FieldError[] {
  const { spec } = object;
  if (!isRecord(spec)) return [required('spec')];
  const errors: FieldError[] = [];
  if (spec.selector === undefined) errors.push(required('spec.selector'));
  else if (!matchesSelector(spec.selector, spec.template?.metadata?.labels)) {
    errors.push(
      wrong(
        'spec.template.metadata.labels',
        spec.template?.metadata?.labels ?? {},
        '`selector` does not match template `labels`',
      ),
    );
  }
  if (spec.template?.spec === undefined) errors.push(required('spec.template.spec'));
  else errors.push(...checkPodSpec(spec.template.spec, 'spec.template.spec'));
  return errors;
}

/** What a new object has wrong, before defaults. */
export function validateNew(kind: Kind, object: KubeObject): FieldError[] {
  const isLabel = kind === SERVICES;
  const errors = checkMeta(object.metadata, 'metadata', isLabel);
  if (kind === PODS) {
    const { spec } = object as Pod;
    if (!isRecord(spec)) return [...errors, required('spec.containers')];
    errors.push(...checkPodSpec(spec, 'spec'));
  } else if (kind === JOBS) errors.push(...checkJob(object as Job));
  else if (kind === DEPLOYMENTS || kind === REPLICA_SETS) {
    errors.push(...checkWorkload(object as Deployment));
  }
  return errors;
}

/** Of a suspended Job that never ran, who schedules it may say where its pods may go. */
const SCHEDULING = new Set(['nodeSelector', 'tolerations', 'affinity', 'schedulingGates']);

function mayBeScheduledAnew({ spec, status }: Job): boolean {
  return (
    spec.suspend === true &&
    (status.startTime === undefined || hasCondition(status.conditions, 'Suspended')) &&
    (status.active ?? 0) === 0
  );
}

function templateWithout(template: Job['spec']['template']): unknown {
  const { annotations: _annotations, labels: _labels, ...metadata } = template.metadata ?? {};
  const spec = Object.entries(template.spec ?? {}).filter(([key]) => !SCHEDULING.has(key));
  return { ...template, metadata, spec: Object.fromEntries(spec) };
}

function validateJobUpdate(before: Job, after: Job): FieldError[] {
  const errors: FieldError[] = [];
  const fixed = [
    'completionMode',
    'podFailurePolicy',
    'backoffLimitPerIndex',
    'selector',
    'managedBy',
    'manualSelector',
    'successPolicy',
  ] as const;
  for (const name of fixed) {
    if (!isDeepStrictEqual(before.spec[name], after.spec[name])) {
      errors.push(wrong(`spec.${name}`, after.spec[name], IMMUTABLE));
    }
  }
  const isElastic =
    after.spec.completionMode === 'Indexed' && after.spec.completions === after.spec.parallelism;
  if (before.spec.completions !== after.spec.completions && !isElastic) {
    errors.push(wrong('spec.completions', after.spec.completions, IMMUTABLE));
  }
  const whole = [before.spec.template, after.spec.template];
  const [old, now] = mayBeScheduledAnew(before) ? whole.map((one) => templateWithout(one)) : whole;
  if (!isDeepStrictEqual(old, now)) {
    errors.push(wrong('spec.template', after.spec.template, IMMUTABLE));
  }
  return [...errors, ...checkJobNumbers(after)];
}

const POD_RULE =
  'pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)';

function validatePodUpdate(before: Pod, after: Pod): FieldError[] {
  const strip = ({ spec }: Pod): unknown => ({
    ...spec,
    containers: spec.containers.map((one) => ({ ...one, image: '' })),
    initContainers: spec.initContainers?.map((one) => ({ ...one, image: '' })),
    activeDeadlineSeconds: 0,
    tolerations: [],
    nodeName: '',
  });
  return isDeepStrictEqual(strip(before), strip(after)) ? [] : [forbidden('spec', POD_RULE)];
}

/** What a changed object may not have changed. */
export function validateUpdate(kind: Kind, before: KubeObject, after: KubeObject): FieldError[] {
  const errors = checkMeta(after.metadata, 'metadata', kind === SERVICES);
  if (kind === JOBS) errors.push(...validateJobUpdate(before as Job, after as Job));
  else if (kind === PODS) errors.push(...validatePodUpdate(before as Pod, after as Pod));
  else if (kind === DEPLOYMENTS || kind === REPLICA_SETS) {
    errors.push(...checkWorkload(after as Deployment));
    const [old, now] = [(before as Deployment).spec.selector, (after as Deployment).spec.selector];
    if (!isDeepStrictEqual(old, now)) errors.push(wrong('spec.selector', now, IMMUTABLE));
  } else if (kind === CONFIG_MAPS || kind === SECRETS) {
    const isFixed = before['immutable'] === true;
    if (isFixed && !isDeepStrictEqual(before['data'], after['data'])) {
      errors.push(forbidden('data', 'field is immutable when `immutable` is set'));
    }
  }
  return errors;
}
