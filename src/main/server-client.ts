import * as v from 'valibot';
import type { Settings } from '../../config/schema.ts';
import type { SluiceError } from '../domain/errors.ts';
import { describeError, permanent, transient } from '../domain/errors.ts';

/** Where commands find the server that they ask. */
export type ServerSettings = Pick<Settings, 'serverUrl' | 'serverApiKey' | 'httpAddr'>;

/** The API of a server, as a command asks it. */
export interface ServerClient {
  /** Resolves with whatever it answers; rejects with `<command>.unreachable` (Transient). */
  ask(path: string, init?: RequestInit): Promise<Response>;
  /** The JSON of an answer that is well; rejects as `ask` does, and with what `refusal` makes of any other. */
  json<S extends v.GenericSchema>(
    schema: S,
    path: string,
    init?: RequestInit,
  ): Promise<v.InferOutput<S>>;
}

/** @param command begins the codes of errors */
export function connectServer(
  command: string,
  url: string | undefined,
  { serverUrl, serverApiKey: key, httpAddr }: ServerSettings,
): ServerClient {
  const base = (url ?? serverUrl ?? localUrl(httpAddr)).replace(/\/+$/, '');
  const headers = key === undefined ? {} : { authorization: `Bearer ${key}` };
  async function ask(path: string, init: RequestInit = {}): Promise<Response> {
    try {
      return await fetch(`${base}${path}`, { ...init, headers });
    } catch (error) {
      const mend = 'name another server with --url or SLUICE_URL';
      throw transient(
        `${command}.unreachable`,
        `The server at ${base} cannot be reached (${describeError(error)}): ${mend}.`,
      );
    }
  }
  return {
    ask,
    async json(schema, path, init) {
      const response = await ask(path, init);
      if (!response.ok) throw await refusal(command, response);
      return v.parse(schema, await response.json());
    },
  };
}

/** A server that listens everywhere is asked where it certainly is. */
function localUrl({ host, port }: Settings['httpAddr']): string {
  if (host === '0.0.0.0') return `http://127.0.0.1:${port}`;
  if (host === '::') return `http://[::1]:${port}`;
  return `http://${host.includes(':') ? `[${host}]` : host}:${port}`;
}

const failureSchema = v.object({
  error: v.object({ message: v.string(), code: v.optional(v.nullable(v.string()), null) }),
});

/**
 * What a server refuses, in its own words and under its own code after the command's, or `<command>.refused` where it
 * has none; `<command>.not_now` (Transient) for 503.
 */
export async function refusal(command: string, response: Response): Promise<SluiceError> {
  // A body that is cut or no JSON says nothing that could be shown; the status does.
  const failure = v.safeParse(failureSchema, await response.json().catch(() => null));
  const { message, code } = failure.success
    ? failure.output.error
    : { message: `HTTP ${response.status}`, code: null };
  if (response.status === 503) return transient(`${command}.not_now`, message);
  return permanent(`${command}.${code ?? 'refused'}`, message);
}
