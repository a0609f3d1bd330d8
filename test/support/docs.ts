import { SETTINGS } from '../../config/schema.ts';
import type { Setting } from '../../config/kinds.ts';
import type { GenericSchema } from 'valibot';

type AnySetting = Setting<GenericSchema<string | undefined, unknown>>;

const BEGIN = '<!-- settings: written by `npm run docs` -->';
const END = '<!-- /settings -->';

/** `.env.example`: every setting with its default, commented out. */
export function envExample(): string {
  const head =
    '# Settings of Sluice. Unset ones have the value shown; see README.md. Written by `npm run docs`.\n';
  const parts = all().map(
    ({ doc, env, also = [], default: value }) =>
      `\n# ${doc}${also.length === 0 ? '' : `\n# Read, too, where it is unset: ${also.join(', ')}.`}\n# ${env}=${value ?? ''}\n`,
  );
  return head + parts.join('');
}

/** README.md with its table of the settings that most need, as the schema has them. */
export function withSettingsTable(readme: string): string {
  const begin = readme.indexOf(BEGIN);
  const end = readme.indexOf(END);
  if (begin === -1 || end === -1)
    throw new Error('README.md has lost the markers of its settings table');
  const common = all().filter(({ isRare }) => isRare !== true);
  const rows = common.map(
    ({ doc, env, default: value }) =>
      `| \`${env}\` | ${value === undefined || value === '' ? '' : `\`${value}\``} | ${doc} |`,
  );
  const table = ['| setting | default | what it is |', '|---|---|---|', ...rows].join('\n');
  return `${readme.slice(0, begin)}${BEGIN}\n\n${table}\n\n${readme.slice(end)}`;
}

function all(): AnySetting[] {
  return Object.values(SETTINGS);
}
