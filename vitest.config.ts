import { defineConfig } from 'vitest/config';

/** Projects differ in what they need: `unit` nothing, others a Redis of the run, `e2e` and `chaos` time. */
function project(name: string, options: object = {}) {
  return {
    extends: true as const,
    test: { name, include: [`test/${name}/**/*.test.ts`], ...options },
  };
}

const patient = { testTimeout: 60_000, hookTimeout: 120_000 };
const withRedis = { ...patient, globalSetup: ['test/support/global-setup.ts'] };

export default defineConfig({
  test: {
    // The files that a process runs share what it has loaded, a quarter of what each would take: no module may keep
    // what one file leaves and another one reads.
    isolate: false,
    // So do the programs that tests start: engines, stores and machines.
    env: { NODE_COMPILE_CACHE: `${import.meta.dirname}/node_modules/.cache/test-cli` },
    // Two more than the smallest machine has cores: end-to-end tests wait more than they work.
    maxWorkers: 4,
    // As the launcher starts Node: Maglev shares numbers between objects, and crashes under load.
    execArgv: ['--no-maglev'],
    projects: [
      // They wait for nothing, but a busy machine lets them wait.
      project('unit', { testTimeout: 30_000 }),
      project('integration', withRedis),
      project('conformance', withRedis),
      project('e2e', { ...patient, testTimeout: 180_000 }),
      project('chaos', { ...patient, testTimeout: 300_000 }),
    ],
    coverage: { provider: 'v8', include: ['src/**', 'queues/**', 'processors/**', 'config/**'] },
  },
});
