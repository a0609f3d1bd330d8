import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { findRedisProgram, tiedCommand } from '../../src/main/redis-program.ts';
import type { TestRedis } from './redis.ts';

/** Another server over the folder and port of one that was killed; disposing ends it. */
export function restartRedis({ folder, port }: TestRedis): AsyncDisposable {
  const program = findRedisProgram();
  if (program === null) throw new Error('no redis-server');
  const settings = ['--port', String(port), '--dir', folder, '--appendonly', 'yes', '--save', ''];
  const args = [...settings, '--bind', '127.0.0.1', '--maxmemory-policy', 'noeviction'];
  const tied = tiedCommand(program, args, 'KILL');
  const child = spawn(tied.command, tied.args, { stdio: ['pipe', 'ignore', 'ignore'] });
  return {
    async [Symbol.asyncDispose]() {
      const ended = once(child, 'exit');
      child.kill('SIGKILL');
      child.stdin?.destroy();
      await ended;
    },
  };
}
