import { request as httpRequest } from 'node:http';
import type { ServerResponse } from 'node:http';
import type { Auth } from './auth.ts';
import type { Kubelet } from './kubelet.ts';
import { PODS, SERVICES } from './kinds.ts';
import type { ContainerLog } from './logs.ts';
import { isRecord, setCondition, toTime } from './objects.ts';
import type { Pod, Service } from './objects.ts';
import type { Ask, Rest } from './rest.ts';
import { sendJson } from './server.ts';
import type { Exchange, SubHandler } from './server.ts';
import { badRequest, StatusError } from './status.ts';
import type { Store } from './store.ts';

export interface SubresourceOptions {
  store: Store;
  rest: Rest;
  auth: Auth;
  kubelets(): ReadonlyMap<string, Kubelet>;
}

interface LogOptions {
  follow: boolean;
  timestamps: boolean;
  tail: number | undefined;
  since: number;
  limitBytes: number;
}

function logOptions(query: URLSearchParams): LogOptions {
  const tail = query.get('tailLines');
  const seconds = Number(query.get('sinceSeconds') ?? 0);
  const time = query.get('sinceTime');
  return {
    follow: query.get('follow') === 'true',
    timestamps: query.get('timestamps') === 'true',
    tail: tail === null ? undefined : Number(tail),
    since: time === null ? (seconds > 0 ? Date.now() - seconds * 1000 : 0) : Date.parse(time),
    limitBytes: Number(query.get('limitBytes') ?? Number.POSITIVE_INFINITY),
  };
}

interface Line {
  at: number;
  text: string;
}

function sendLog(response: ServerResponse, log: ContainerLog, options: LogOptions): void {
  const { follow, timestamps, tail, since, limitBytes } = options;
  let left = limitBytes;
  response.writeHead(200, { 'content-type': 'text/plain' });
  response.flushHeaders();
  const write = ({ at, text }: Line): void => {
    if (at < since || left <= 0) return;
    const line = `${timestamps ? `${new Date(at).toISOString()} ` : ''}${text}\n`;
    response.write(line.slice(0, left));
    left -= line.length;
  };
  const lines = log.lines();
  const first = tail === undefined ? 0 : Math.max(0, lines.length - tail);
  for (const line of lines.slice(first)) write(line);
  if (!follow || log.ended()) {
    response.end();
    return;
  }
  const end = (): void => {
    log.events.off('line', write);
    response.end();
  };
  log.events.on('line', write).once('end', end);
  response.once('close', () => log.events.off('line', write).off('end', end));
}

export function createSubresources({
  store,
  rest,
  auth,
  kubelets,
}: SubresourceOptions): Map<string, SubHandler> {
  function podOf(ask: Ask): Pod {
    return rest.get({ ...ask, subresource: undefined }) as Pod;
  }

  function containerOf(pod: Pod, wanted: string | null): string {
    const { containers, initContainers = [] } = pod.spec;
    const all = [...initContainers, ...containers].map(({ name }) => name);
    const { name } = pod.metadata;
    if (wanted !== null) {
      if (all.includes(wanted)) return wanted;
      throw badRequest(`container ${wanted} is not valid for pod ${name}`);
    }
    const [only] = containers;
    if (containers.length === 1 && only !== undefined && initContainers.length === 0)
      return only.name;
    const inits =
      initContainers.length === 0
        ? ''
        : ` or one of the init containers: [${initContainers.map((one) => one.name).join(' ')}]`;
    throw badRequest(
      `a container name must be specified for pod ${name}, choose one of: [${containers.map((one) => one.name).join(' ')}]${inits}`,
    );
  }

  async function log(ask: Ask, { response }: Exchange): Promise<void> {
    const pod = podOf(ask);
    const name = containerOf(pod, ask.query.get('container'));
    const previous = ask.query.get('previous') === 'true';
    const { nodeName } = pod.spec;
    const kubelet = kubelets().get(nodeName ?? '');
    if (kubelet?.isLost() === true) {
      const { podIP = '' } = pod.status;
      throw new StatusError(
        500,
        'InternalError',
        `Get "https://${nodeName}:10250/containerLogs/${pod.metadata.namespace}/${pod.metadata.name}/${name}": dial tcp ${podIP}:10250: connect: no route to host`,
      );
    }
    const found = kubelet?.runner(pod)?.container(name)?.log(previous);
    if (found === undefined && previous) {
      throw badRequest(
        `previous terminated container "${name}" in pod "${pod.metadata.name}" not found`,
      );
    }
    if (found === undefined) {
      const statuses = [
        ...(pod.status.initContainerStatuses ?? []),
        ...(pod.status.containerStatuses ?? []),
      ];
      const waiting = statuses.find((one) => one.name === name)?.state?.waiting?.reason;
      const why =
        waiting === undefined || waiting === 'ContainerCreating' ? 'ContainerCreating' : waiting;
      const text =
        why === 'ErrImagePull' || why === 'ImagePullBackOff'
          ? `trying and failing to pull image`
          : why;
      throw badRequest(
        `container "${name}" in pod "${pod.metadata.name}" is waiting to start: ${text}`,
      );
    }
    sendLog(response, found, logOptions(ask.query));
  }

  async function evict(ask: Ask, { response }: Exchange): Promise<void> {
    const pod = podOf(ask);
    const { namespace, name } = pod.metadata;
    store.update(PODS, namespace, name, (copy) => {
      const { status } = copy as Pod;
      status.conditions = setCondition(
        status.conditions,
        {
          type: 'DisruptionTarget',
          status: 'True',
          reason: 'EvictionByEvictionAPI',
          message: 'Eviction API: evicting',
        },
        Date.now(),
      );
    });
    const body = isRecord(ask.body) ? ask.body['deleteOptions'] : undefined;
    rest.remove({ ...ask, subresource: undefined, body });
    sendJson(response, 201, {
      kind: 'Status',
      apiVersion: 'v1',
      metadata: {},
      status: 'Success',
      code: 201,
    });
  }

  async function bind(ask: Ask, { response }: Exchange): Promise<void> {
    const pod = podOf(ask);
    const target = isRecord(ask.body) && isRecord(ask.body['target']) ? ask.body['target'] : {};
    store.update(PODS, pod.metadata.namespace, pod.metadata.name, (copy) => {
      (copy as Pod).spec.nodeName = String(target['name']);
    });
    sendJson(response, 201, {
      kind: 'Status',
      apiVersion: 'v1',
      metadata: {},
      status: 'Success',
      code: 201,
    });
  }

  async function token(ask: Ask, { response }: Exchange): Promise<void> {
    const account = rest.get({ ...ask, subresource: undefined });
    const { namespace = 'default', name } = account.metadata;
    const spec = isRecord(ask.body) && isRecord(ask.body['spec']) ? ask.body['spec'] : {};
    const seconds = Number(spec['expirationSeconds'] ?? 3600);
    sendJson(response, 201, {
      kind: 'TokenRequest',
      apiVersion: 'authentication.k8s.io/v1',
      metadata: { name, namespace, creationTimestamp: toTime(Date.now()) },
      spec,
      status: {
        token: auth.tokenOf(namespace, name),
        expirationTimestamp: toTime(Date.now() + seconds * 1000),
      },
    });
  }

  async function forward(exchange: Exchange, host: string, port: number): Promise<void> {
    const { request, response, rest: tail, method } = exchange;
    const { promise, resolve, reject } = Promise.withResolvers<undefined>();
    const { search } = new URL(request.url ?? '/', 'https://kubernetes');
    const { authorization: _authorization, host: _host, ...headers } = request.headers;
    const onward = httpRequest(
      { host, port, method, path: `${tail === '' ? '/' : tail}${search}`, headers, agent: false },
      (answer) => {
        response.writeHead(answer.statusCode ?? 502, answer.headers);
        answer.pipe(response);
        answer.once('close', () => resolve(undefined));
      },
    );
    onward.once('error', (error) =>
      reject(
        new StatusError(
          503,
          'ServiceUnavailable',
          `error trying to reach service: ${error.message}`,
        ),
      ),
    );
    response.once('close', () => onward.destroy());
    request.pipe(onward);
    await promise;
  }

  /** `name`, `name:port` or `http:name:port`. */
  function target(name: string): { name: string; port: string | undefined } {
    const parts = name.split(':');
    if (parts.length === 3) return { name: parts[1] ?? '', port: parts[2] };
    return { name: parts[0] ?? '', port: parts[1] };
  }

  async function podProxy(ask: Ask, exchange: Exchange): Promise<void> {
    const { name, port } = target(ask.name ?? '');
    const pod = podOf({ ...ask, name });
    const own = pod.spec.containers.flatMap(({ ports = [] }) => ports)[0]?.containerPort;
    await forward(exchange, pod.status.podIP ?? '', Number(port ?? own ?? 80));
  }

  async function serviceProxy(ask: Ask, exchange: Exchange): Promise<void> {
    const { name, port } = target(ask.name ?? '');
    const service = store.get(SERVICES, ask.namespace, name) as Service | undefined;
    if (service === undefined) rest.get({ ...ask, subresource: undefined, name });
    const ports = service?.spec.ports ?? [];
    const found =
      ports.find((one) => one.name === port || String(one.port) === port) ??
      (port === undefined ? ports[0] : undefined);
    if (found === undefined || service?.spec.clusterIP === undefined) {
      throw new StatusError(
        503,
        'ServiceUnavailable',
        `no endpoints available for service "${name}"`,
      );
    }
    await forward(exchange, service.spec.clusterIP, found.port);
  }

  return new Map<string, SubHandler>([
    ['pods/log', log],
    ['pods/eviction', evict],
    ['pods/binding', bind],
    ['pods/proxy', podProxy],
    ['services/proxy', serviceProxy],
    ['serviceaccounts/token', token],
  ]);
}
