import { pino } from 'pino';
import type { DestinationStream, Logger } from 'pino';

export type { Logger } from 'pino';

/** What never reaches a log, wherever it is nested. */
const SECRETS = [
  'authorization',
  'apiKey',
  'engineApiKey',
  'password',
  'redisUrl',
  'storeUri',
  'webhookSecret',
];

/** JSON lines on stderr (stdout belongs to results); messages are static, what varies stands in fields beside them. */
export function createLogger(options: { level: string; destination?: DestinationStream }): Logger {
  const settings = {
    level: options.level,
    base: { pid: process.pid },
    timestamp: pino.stdTimeFunctions.isoTime,
    formatters: { level: (label: string) => ({ level: label }) },
    redact: {
      paths: SECRETS.flatMap((name) => [name, `*.${name}`, `*.*.${name}`]),
      censor: '[secret]',
    },
  };
  return pino(settings, options.destination ?? pino.destination({ dest: 2, sync: false }));
}
