import * as v from 'valibot';
import { transient } from '../../domain/errors.ts';
import type { LeaseCapabilities, Machine, MachineWish } from '../lease-contract.ts';
import type { CloudType } from './settings.ts';

/** A network volume of the account. */
export interface Volume {
  id: string;
  name: string;
  dataCenter: string;
}

/** One create: of one GPU type, and of the first of `dataCenters` that has it; empty is anywhere. */
export interface PodOrder {
  wish: MachineWish;
  gpuType: string;
  dataCenters: readonly string[];
  cloudType: CloudType;
  volume: Volume | null;
  /** As RunPod writes them: `22/tcp`, and `8000/http` for one that its public proxy leads to. */
  ports: readonly string[];
}

/** What differs between RunPod's two REST APIs. Readers throw `lease.unavailable` for an answer of another shape. */
export interface Dialect {
  capabilities: LeaseCapabilities;
  /** Path and query of one page of all pods. */
  listPath(cursor: string | null): string;
  /** Path and query of one pod, to look at. */
  lookPath(id: string): string;
  readPage(answer: unknown): { pods: readonly unknown[]; next: string | null };
  readMachine(pod: unknown): Machine;
  orderBody(order: PodOrder): object;
  volumesPath: string;
  readVolumes(answer: unknown): Volume[];
}

/** Parses by a schema; what RunPod has not said in its specification is no answer. */
export function readAs<S extends v.GenericSchema>(
  schema: S,
  what: string,
  value: unknown,
): v.InferOutput<S> {
  const parsed = v.safeParse(schema, value);
  if (parsed.success) return parsed.output;
  const [issue] = parsed.issues;
  const place = v.getDotPath(issue) ?? 'the whole';
  const message = `RunPod answers with ${what} of another shape than its specification has: at ${place} not ${issue.expected ?? 'that'}.`;
  throw transient('lease.unavailable', message);
}

/** What every pod has, other people's and CPU pods included. */
export const podHead = v.object({ id: v.pipe(v.string(), v.nonEmpty()), name: v.string() });

/** ms since 1970 of `2026-06-01T12:00:00Z` or v1's `2026-08-20 06:16:19.436 +0000 UTC`; null for anything else. */
export function readTime(text: string): number | null {
  const plain = text.replace(/^(\S+) (\S+) \+0000 UTC$/, '$1T$2Z');
  const time = Date.parse(plain);
  return Number.isNaN(time) ? null : time;
}

/** What says nothing of a machine that we did not say ourselves, `env` with the machine's private host key among it. */
const OURS = new Set(['env', 'args', 'cmd', 'entrypoint', 'dockerStartCmd', 'dockerEntrypoint']);

/** The answer without what is ours, at any depth. */
export function withoutOurs(value: unknown): unknown {
  if (Array.isArray(value)) return value.map(withoutOurs);
  if (typeof value !== 'object' || value === null) return value;
  const kept = Object.entries(value).filter(([key]) => !OURS.has(key));
  return Object.fromEntries(kept.map(([key, one]) => [key, withoutOurs(one)]));
}

const MINUTE = 60_000;

/** Public ports came 20 minutes late at worst (dstack #1145); lists were seen to lag by some seconds. */
export const BOOT_DEADLINE_MS = 20 * MINUTE;
export const LIST_LAG_MS = MINUTE;
