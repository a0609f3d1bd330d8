import * as v from 'valibot';
import { callError, isNoSuchObject } from './api.ts';
import type { Ask } from './api.ts';
import { isTerminating, readLabel, toMachine } from './instances.ts';
import type { Inventory, Turn } from './inventory.ts';

const answer = v.object({ terminated_instances: v.array(v.unknown()) });

export interface TerminateDeps {
  ask: Ask;
  turn: Turn;
  inventory: Inventory;
}

/**
 * Ends one instance, in a call of its own: one that names several is refused whole where one of them is not there.
 * Rejects with the contract's errors, after which it may be done again.
 */
export async function terminate(
  id: string,
  { ask, turn, inventory }: TerminateDeps,
): Promise<'gone' | 'going'> {
  await turn('release');
  const outcome = await ask('POST', '/instance-operations/terminate', { instance_ids: [id] });
  if (isNoSuchObject(outcome)) return 'gone';
  const parsed = v.safeParse(answer, outcome.is === 'data' ? outcome.data : undefined);
  const ended = parsed.success ? parsed.output.terminated_instances.map(readLabel) : [];
  const own = ended.find((each) => each?.id === id);
  if (own) return toMachine(own).state === 'gone' ? 'gone' : 'going';
  const refusal = callError(`to terminate ${id}`, outcome);
  // "An unknown error occurred" is said of one that is terminating already (SkyPilot #3410).
  if (outcome.is !== 'refusal' || outcome.code !== 'global/unknown') throw refusal;
  await turn('release');
  const listed = await inventory.read(id);
  if (listed === null || toMachine(listed).state === 'gone') return 'gone';
  if (isTerminating(listed)) return 'going';
  throw refusal;
}
