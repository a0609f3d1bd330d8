import { EVENTS } from './kinds.ts';
import { toTime } from './objects.ts';
import type { KubeObject } from './objects.ts';
import type { Store } from './store.ts';

export type EventType = 'Normal' | 'Warning';

/** Writes events as components of a cluster do: one that comes again counts up. */
export interface Recorder {
  record(
    about: KubeObject,
    type: EventType,
    reason: string,
    message: string,
    source: { component: string; host?: string },
    fieldPath?: string,
  ): void;
}

let last = 0;

/** Sixteen hex digits that grow, as the real names' do. */
function stamp(): string {
  last = Math.max(last + 1, Date.now() * 1000);
  return (BigInt(last) * 1000n).toString(16).padStart(16, '0');
}

export function createRecorder(store: Store): Recorder {
  return {
    record(about, type, reason, message, source, fieldPath) {
      const { name, uid, resourceVersion } = about.metadata;
      const namespace = about.metadata.namespace ?? 'default';
      const now = toTime(Date.now());
      const same = store.list(EVENTS, namespace).find((event) => {
        const involved = event['involvedObject'] as { uid?: string; fieldPath?: string };
        return (
          involved.uid === uid &&
          involved.fieldPath === fieldPath &&
          event['reason'] === reason &&
          event['message'] === message
        );
      });
      if (same !== undefined) {
        store.update(EVENTS, namespace, same.metadata.name, (event) => {
          event['count'] = Number(event['count']) + 1;
          event['lastTimestamp'] = now;
        });
        return;
      }
      store.create(EVENTS, {
        apiVersion: 'v1',
        kind: 'Event',
        // uid, version and time of making are the store's to fill in.
        metadata: { name: `${name}.${stamp()}`, namespace } as KubeObject['metadata'],
        involvedObject: {
          apiVersion: about.apiVersion,
          kind: about.kind,
          name,
          namespace: about.metadata.namespace,
          uid,
          resourceVersion,
          ...(fieldPath === undefined ? {} : { fieldPath }),
        },
        type,
        reason,
        message,
        source,
        firstTimestamp: now,
        lastTimestamp: now,
        count: 1,
        eventTime: null,
        reportingComponent: source.component,
        reportingInstance: source.host ?? '',
      });
    },
  };
}
