/** The first Node that runs TypeScript files without a flag or a warning: 24.12. */
const NEEDED = { major: 24, minor: 12 };

/** Null for a Node that can run Sluice (`version` as in `process.version`), else one clear line. */
export function checkNode(version: string): string | null {
  const [major = 0, minor = 0] = version.replace(/^v/, '').split('.').map(Number);
  const enough = major > NEEDED.major || (major === NEEDED.major && minor >= NEEDED.minor);
  if (enough) return null;
  return (
    `Sluice needs Node ${NEEDED.major}.${NEEDED.minor} or later and this is ${version}: ` +
    'run `npm run setup`, then start it with `npm start` or `npx sluice`'
  );
}
