import { defineConfig } from 'vitest/config';

/** Projects differ in what they need: `unit` nothing, the others a real Redis, some also time. */
function project(name: string, options: object = {}) {
  return {
    extends: true as const,
    test: { name, include: [`test/${name}/**/*.test.ts`], ...options },
  };
}

const withRedis = {
  globalSetup: ['test/support/global-setup.ts'],
  testTimeout: 30_000,
  hookTimeout: 30_000,
};

export default defineConfig({
  test: {
    // Two cores: more processes only make each other late.
    maxWorkers: 2,
    projects: [
      project('unit'),
      project('integration', withRedis),
      project('conformance', withRedis),
      project('e2e', { ...withRedis, testTimeout: 90_000 }),
      project('chaos', { ...withRedis, testTimeout: 180_000, fileParallelism: false }),
    ],
    coverage: { provider: 'v8', include: ['src/**', 'queues/**', 'processors/**', 'config/**'] },
  },
});
