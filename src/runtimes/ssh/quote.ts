import { invalidInput } from '../../domain/errors.ts';

/**
 * Linux takes no longer argument (MAX_ARG_STRLEN, 128 KiB), and sshd gives the whole command to the user's shell as one.
 */
const MOST_COMMAND_BYTES = 120 * 1024;

/** One word for a POSIX shell: between single quotes nothing has a meaning but the quote itself. */
function quoteWord(word: string): string {
  if (word.includes('\0')) {
    throw invalidInput('ssh.command', 'a command line cannot hold a NUL character');
  }
  return `'${word.replaceAll("'", String.raw`'\''`)}'`;
}

/** A command line whose words reach the program as they are. Throws `InvalidInput` `ssh.command` where that cannot be. */
export function quoteCommand(argv: readonly string[]): string {
  const line = argv.map(quoteWord).join(' ');
  const bytes = Buffer.byteLength(line);
  if (bytes > MOST_COMMAND_BYTES) {
    throw invalidInput(
      'ssh.command',
      `a command line of ${bytes} bytes is more than the ${MOST_COMMAND_BYTES} that a machine takes`,
    );
  }
  return line;
}
