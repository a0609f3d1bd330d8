import { readFileSync } from 'node:fs';
import { expect, test } from 'vitest';
import { envExample, withSettingsTable } from '../support/docs.ts';

function read(name: string): string {
  return readFileSync(new URL(`../../${name}`, import.meta.url), 'utf8');
}

test('.env.example is what the settings are (npm run docs)', () => {
  expect(read('.env.example')).toBe(envExample());
});

test('the settings table of README.md is what the settings are (npm run docs)', () => {
  const readme = read('README.md');
  expect(readme).toBe(withSettingsTable(readme));
});

test('README.md is a front door of at most 150 lines', () => {
  expect(read('README.md').split('\n').length).toBeLessThanOrEqual(151);
});
