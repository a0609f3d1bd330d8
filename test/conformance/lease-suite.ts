import { describe } from 'vitest';
import { callTests, catalogTests } from './lease-suite-calls.ts';
import { createTests, refusalTests } from './lease-suite-create.ts';
import { describeTests, destroyTests, listTests } from './lease-suite-life.ts';
import type { LeaseFlags, StartWorld } from './lease-world.ts';

/** Registers all tests of the contract for one manager. */
export function describeLeaseManager(name: string, start: StartWorld, flags: LeaseFlags): void {
  // Each has a world of its own and mostly waits.
  describe.concurrent(`${name}: create`, () => {
    createTests(start);
  });
  describe.concurrent(`${name}: create that fails`, () => {
    refusalTests(start, flags);
  });
  describe.concurrent(`${name}: describe`, () => {
    describeTests(start);
  });
  describe.concurrent(`${name}: destroy`, () => {
    destroyTests(start);
  });
  describe.concurrent(`${name}: list`, () => {
    listTests(start, flags);
  });
  describe.concurrent(`${name}: catalog`, () => {
    catalogTests(start, flags);
  });
  describe.concurrent(`${name}: every call`, () => {
    callTests(start, flags);
  });
}
