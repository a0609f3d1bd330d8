import * as v from 'valibot';
import { duration, text } from './kinds.ts';
import type { Setting } from './kinds.ts';

const ENDPOINT_MESSAGE =
  'must be the URL of what says that the engine is ready, such as http://localhost:8000/health';
const INDEX_MESSAGE = 'must be a whole number';

const maybe = v.optional(text);

/** It becomes a part of keys in storage. */
const name = v.optional(
  v.pipe(
    text,
    v.regex(
      /^(?!\.{1,2}$)[A-Za-z0-9._-]{1,253}$/,
      'must be a name out of A-Z, a-z, 0-9, ., _ and -',
    ),
  ),
);

const rare = { isRare: true, default: undefined } as const;

/**
 * Of `sluice batch-worker`, which runs in the pod of a Kubernetes Job. The names are AIBrix's; most are filled by the Job's
 * template through the downward API, and an empty one counts as unset.
 */
export const BATCH_WORKER_SETTINGS = {
  metastoreType: {
    doc: 'Batch worker: where the record of a run lies. AUTO: beside the files, where STORAGE_TYPE says. LOCAL, S3 or TOS: there.',
    env: 'METASTORE_TYPE',
    isRare: true,
    default: 'AUTO',
    schema: v.pipe(
      text,
      v.toUpperCase(),
      v.picklist(['AUTO', 'LOCAL', 'S3', 'TOS', 'REDIS'], 'must be one of AUTO, LOCAL, S3, TOS'),
    ),
  },
  llmReadyEndpoint: {
    doc: "Batch worker: URL that answers 200 once the engine is ready; requests go to the same host and port. Unset: the readiness or liveness probe of the Job's engine container, else http://localhost:8000/health.",
    env: 'LLM_READY_ENDPOINT',
    ...rare,
    schema: v.optional(
      v.pipe(
        text,
        v.regex(/^https?:\/\/[^\s/?#]+(?:\/[^\s?#]*)?$/, ENDPOINT_MESSAGE),
        v.url(ENDPOINT_MESSAGE),
      ),
    ),
  },
  llmReadyTimeout: {
    doc: 'Batch worker: how long it waits for the engine, at first and whenever it goes away; the deadline of the batch ends the wait, too.',
    env: 'LLM_READY_TIMEOUT',
    isRare: true,
    default: '30m',
    schema: duration(1_000),
  },
  jobName: { doc: 'Batch worker: name of its Job.', env: 'JOB_NAME', ...rare, schema: name },
  jobNamespace: {
    doc: "Batch worker: namespace of its Job. Unset: that of the pod's service account.",
    env: 'JOB_NAMESPACE',
    ...rare,
    schema: name,
  },
  jobUid: {
    doc: "Batch worker: uid of its Job, the name of the run's record in storage. Unset: as the API server says.",
    env: 'JOB_UID',
    ...rare,
    schema: name,
  },
  jobCompletionIndex: {
    doc: 'Batch worker: its index in an Indexed Job, as Kubernetes sets it.',
    env: 'JOB_COMPLETION_INDEX',
    ...rare,
    schema: v.optional(v.pipe(text, v.regex(/^\d{1,6}$/, INDEX_MESSAGE), v.transform(Number))),
  },
  podName: { doc: 'Batch worker: name of its pod.', env: 'POD_NAME', ...rare, schema: name },
  podUid: {
    doc: 'Batch worker: uid of its pod, the name of what it stores. Unset: POD_NAME, else the name of the host.',
    env: 'POD_UID',
    ...rare,
    schema: name,
  },
  batchInputFileId: {
    doc: 'Batch worker: stands for the annotation input-file-id where there is none.',
    env: 'BATCH_INPUT_FILE_ID',
    ...rare,
    schema: maybe,
  },
  batchEndpoint: {
    doc: 'Batch worker: stands for the annotation endpoint.',
    env: 'BATCH_ENDPOINT',
    ...rare,
    schema: maybe,
  },
  batchOutputFileId: {
    doc: 'Batch worker: stands for the annotation output-file-id.',
    env: 'BATCH_OUTPUT_FILE_ID',
    ...rare,
    schema: maybe,
  },
  batchErrorFileId: {
    doc: 'Batch worker: stands for the annotation error-file-id.',
    env: 'BATCH_ERROR_FILE_ID',
    ...rare,
    schema: maybe,
  },
  batchAibrix: {
    doc: 'Batch worker: stands for the annotation aibrix, a JSON object.',
    env: 'BATCH_AIBRIX',
    ...rare,
    schema: maybe,
  },
  batchOpts: {
    doc: 'Batch worker: stands for the annotation opts, a JSON object.',
    env: 'BATCH_OPTS',
    ...rare,
    schema: maybe,
  },
  batchFailAfter: {
    doc: 'Batch worker: stands for the annotation opts.fail_after_n_requests.',
    env: 'BATCH_OPTS_FAIL_AFTER_N_REQUESTS',
    ...rare,
    schema: maybe,
  },
  kubernetesServiceHost: {
    doc: 'Host of the API server, as Kubernetes tells each pod.',
    env: 'KUBERNETES_SERVICE_HOST',
    ...rare,
    schema: maybe,
  },
  kubernetesServicePort: {
    doc: 'Port of the API server, as Kubernetes tells each pod.',
    env: 'KUBERNETES_SERVICE_PORT',
    isRare: true,
    default: '443',
    schema: v.pipe(text, v.regex(/^\d{1,5}$/, 'must be a port')),
  },
  serviceAccountDir: {
    doc: "Folder of the pod's service account: token, ca.crt and namespace.",
    env: 'SERVICE_ACCOUNT_DIR',
    isRare: true,
    default: '/var/run/secrets/kubernetes.io/serviceaccount',
    schema: text,
  },
} as const satisfies Record<string, Setting<v.GenericSchema<string | undefined, unknown>>>;
