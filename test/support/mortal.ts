import type { Redis } from 'ioredis';
import type { Storage } from '../../src/storage/contract.ts';

/** How many more commands and calls a process does until it is killed. */
export interface Life {
  left: number;
}

export class Killed extends Error {}

function breathe(life: Life): void {
  if (life.left <= 0) throw new Killed('the process was killed');
  life.left -= 1;
}

/** Lets a client of Redis send as many commands as its process lives; all that come then fail. */
export function mortalRedis(redis: Redis, life: Life): Redis {
  const send = redis.sendCommand.bind(redis);
  redis.sendCommand = (command, ...rest) => {
    try {
      breathe(life);
    } catch (error) {
      command.reject(error as Killed); // it is the only error there is
      return command.promise;
    }
    return send(command, ...rest);
  };
  return redis;
}

/** The same for a storage: a call that is the last one had its effect, or not. */
export function mortalStorage(storage: Storage, life: Life): Storage {
  return {
    ...storage,
    async put(...args) {
      breathe(life);
      return storage.put(...args);
    },
    async get(...args) {
      breathe(life);
      return storage.get(...args);
    },
    async head(key) {
      breathe(life);
      return storage.head(key);
    },
    async delete(key) {
      breathe(life);
      return storage.delete(key);
    },
    async *list(prefix) {
      for await (const key of storage.list(prefix)) {
        breathe(life);
        yield key;
      }
    },
  };
}
