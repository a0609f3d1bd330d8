import { deepStrictEqual } from 'node:assert/strict';
import { commandName, SCRIPT_NAMES } from '../../../src/store/scripts.ts';
import type { Client } from '../../../src/store/scripts.ts';
import type { Random } from './random.ts';

/**
 * Lets the client send some scripts twice, as ioredis does when the reply was lost. The store sees the second reply,
 * which has to be the same as the first where `compare` is set. Returns how many were sent twice.
 */
export function repeatCommands(
  redis: Client,
  random: () => Random,
  compare: boolean,
): { repeated: number } {
  const stats = { repeated: 0 };
  const commands = SCRIPT_NAMES.flatMap((name) => [
    commandName(name),
    `${commandName(name)}Buffer`,
  ]);
  for (const command of commands) {
    const send: unknown = Reflect.get(redis, command);
    if (typeof send !== 'function') throw new Error(`the client has no command ${command}`);
    const twice = async (...args: unknown[]): Promise<unknown> => {
      // ioredis takes the arguments over and changes them.
      const first: unknown = await Reflect.apply(send, redis, [...args]);
      if (!random().chance(0.12)) return first;
      stats.repeated += 1;
      const second: unknown = await Reflect.apply(send, redis, [...args]);
      if (compare) deepStrictEqual(second, first, `${command} answers a repeat otherwise`);
      return second;
    };
    Reflect.set(redis, command, twice);
  }
  return stats;
}
