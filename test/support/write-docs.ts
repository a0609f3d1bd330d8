import { readFileSync, writeFileSync } from 'node:fs';
import { envExample, withSettingsTable } from './docs.ts';

/** `npm run docs`: writes what is generated from config/schema.ts. */
const readme = new URL('../../README.md', import.meta.url);
writeFileSync(readme, withSettingsTable(readFileSync(readme, 'utf8')));
writeFileSync(new URL('../../.env.example', import.meta.url), envExample());
