/*
 * KEDA's ScaledObject (keda.sh/v1alpha1), of its documentation: keda.sh/docs/latest/reference/scaledobject-spec,
 * scalers/prometheus and scalers/cpu. Only the triggers that we use are in it.
 */

const count = { type: 'integer', minimum: 0 };
const words = { type: 'string', minLength: 1 };
/** KEDA reads numbers in metadata from strings. */
const numeral = { type: 'string', pattern: '^[0-9]+([.][0-9]+)?$' };

function object(properties: object, required: readonly string[] = []) {
  return { type: 'object', additionalProperties: false, properties, required };
}

const prometheus = object(
  {
    type: { const: 'prometheus' },
    name: words,
    metricType: { enum: ['AverageValue', 'Value'] },
    useCachedMetrics: { type: 'boolean' },
    authenticationRef: object(
      { name: words, kind: { enum: ['TriggerAuthentication', 'ClusterTriggerAuthentication'] } },
      ['name'],
    ),
    metadata: object(
      {
        serverAddress: { type: 'string', pattern: '^https?://[^/ ]+' },
        query: words,
        threshold: numeral,
        activationThreshold: numeral,
        namespace: words,
        customHeaders: words,
        queryParameters: words,
        ignoreNullValues: { enum: ['true', 'false'] },
        unsafeSsl: { enum: ['true', 'false'] },
        timeout: numeral,
        authModes: words,
      },
      ['serverAddress', 'query', 'threshold'],
    ),
  },
  ['type', 'metadata'],
);

const cpu = object(
  {
    type: { const: 'cpu' },
    name: words,
    metricType: { enum: ['Utilization', 'AverageValue'] },
    metadata: object({ value: words, containerName: words }, ['value']),
  },
  ['type', 'metricType', 'metadata'],
);

const scaling = object({
  stabilizationWindowSeconds: { type: 'integer', minimum: 0, maximum: 3_600 },
  selectPolicy: { enum: ['Max', 'Min', 'Disabled'] },
  tolerance: words,
  policies: {
    type: 'array',
    minItems: 1,
    items: object(
      {
        type: { enum: ['Pods', 'Percent'] },
        value: { type: 'integer', minimum: 1 },
        periodSeconds: { type: 'integer', minimum: 1, maximum: 1_800 },
      },
      ['type', 'value', 'periodSeconds'],
    ),
  },
});

const spec = object(
  {
    scaleTargetRef: object(
      { apiVersion: words, kind: words, name: words, envSourceContainerName: words },
      ['name'],
    ),
    pollingInterval: count,
    cooldownPeriod: count,
    initialCooldownPeriod: count,
    idleReplicaCount: count,
    minReplicaCount: count,
    maxReplicaCount: count,
    fallback: object(
      {
        failureThreshold: count,
        replicas: count,
        behavior: {
          enum: ['static', 'currentReplicas', 'currentReplicasIfHigher', 'currentReplicasIfLower'],
        },
      },
      ['failureThreshold', 'replicas'],
    ),
    advanced: object({
      restoreToOriginalReplicaCount: { type: 'boolean' },
      horizontalPodAutoscalerConfig: object({
        name: words,
        behavior: object({ scaleUp: scaling, scaleDown: scaling }),
      }),
    }),
    triggers: { type: 'array', minItems: 1, items: { anyOf: [prometheus, cpu] } },
  },
  ['scaleTargetRef', 'triggers'],
);

export const SCALED_OBJECT = object(
  {
    apiVersion: { const: 'keda.sh/v1alpha1' },
    kind: { const: 'ScaledObject' },
    metadata: object(
      {
        name: words,
        namespace: words,
        labels: { type: 'object', additionalProperties: { type: 'string' } },
        annotations: { type: 'object', additionalProperties: { type: 'string' } },
      },
      ['name'],
    ),
    spec,
  },
  ['apiVersion', 'kind', 'metadata', 'spec'],
);
