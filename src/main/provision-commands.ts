import type { Command } from 'commander';
import { loadSettings } from '../../config/load.ts';
import type { ProvisionsOptions, ReleaseOptions } from './provisions.ts';

/** `sluice provisions` and what is under it. */
export function addProvisions(program: Command): void {
  const provisions = program
    .command('provisions')
    .description('list what jobs run on, and give it back by hand');
  withServer(provisions.command('list', { isDefault: true }))
    .description('list what jobs run on, newest first (what provisions does alone)')
    .option('-a, --all', 'those that are released, too')
    .option('-j, --job <id>', 'only those of this job or batch')
    .option('-p, --provider <name>', 'only those of this provider')
    .action(async (options: ProvisionsOptions) => {
      const { listProvisions } = await import('./provisions.ts');
      process.exitCode = await listProvisions(options, loadSettings());
    });
  withServer(provisions.command('release'))
    .description('give a provision back, and wait until its provider shows that it is gone')
    .argument('<id>', 'id of the provision: prov_…')
    .option('--rehome', 'its job goes on with another provision')
    .option('--end', 'its job is cancelled, and keeps what was answered')
    .action(async (id: string, options: ReleaseOptions) => {
      const { releaseProvision } = await import('./provisions.ts');
      process.exitCode = await releaseProvision(id, options, loadSettings());
    });
  withServer(provisions.command('machines'))
    .description('list the machines that the providers show, and whose each is')
    .action(async (options: Pick<ProvisionsOptions, 'url' | 'json'>) => {
      const { listMachines } = await import('./provisions.ts');
      process.exitCode = await listMachines(options, loadSettings());
    });
}

function withServer(command: Command): Command {
  return command
    .option('-u, --url <url>', 'base URL of the server (default: SLUICE_URL, else HTTP_ADDR)')
    .option('--json', 'print what it answers as one JSON object');
}
