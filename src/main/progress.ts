import { Presets, SingleBar } from 'cli-progress';

export interface Tick {
  total: number;
  completed: number;
  failed: number;
  /** Answered, but not in the counts yet: those move with each commit, seconds apart. */
  uncommitted: number;
  inFlight: number;
  /** Why nothing moves, or what goes on before lines do. */
  note: string;
}

/** Progress on stderr: a bar on a terminal, a plain line every few seconds elsewhere. */
export interface Progress {
  tick(tick: Tick): void;
  stop(): void;
}

const PLAIN_EVERY_MS = 5_000;
/** What is waited for is said once, and then rarely. */
const NOTE_EVERY_MS = 60_000;
const RATE_WINDOW_MS = 5_000;

export function createProgress(stream: NodeJS.WriteStream): Progress {
  const rate = createRate();
  return stream.isTTY ? createBar(stream, rate) : createPlain(stream, rate);
}

function createBar(stream: NodeJS.WriteStream, rate: Rate): Progress {
  const bar = new SingleBar(
    {
      stream,
      format:
        '{bar} {percentage}% | {value}/{total} | {rate}/s | {inFlight} in flight | {failed} failed | {eta_} {note}',
      hideCursor: true,
      gracefulExit: false,
      barsize: 24,
    },
    Presets.shades_classic,
  );
  let started = false;
  return {
    tick(tick) {
      const done = doneOf(tick);
      const perSecond = rate(done);
      const { inFlight, failed } = tick;
      const note = tick.note.slice(0, 60);
      const fields = { rate: perSecond, inFlight, failed, eta_: eta(tick, perSecond), note };
      // Until the input is read there is nothing to draw a bar of.
      if (tick.total === 0) return;
      if (!started) bar.start(tick.total, done, fields);
      started = true;
      bar.setTotal(tick.total);
      bar.update(done, fields);
    },
    stop() {
      if (started) bar.stop();
    },
  };
}

function createPlain(stream: NodeJS.WriteStream, rate: Rate): Progress {
  let saidAt = performance.now();
  let said = '';
  return {
    tick(tick) {
      const done = doneOf(tick);
      const perSecond = rate(done);
      const isNews = tick.note !== '' && tick.note !== said;
      const everyMs = tick.note === '' ? PLAIN_EVERY_MS : NOTE_EVERY_MS;
      if (!isNews && performance.now() - saidAt < everyMs) return;
      saidAt = performance.now();
      said = tick.note;
      const counts = `${done}/${tick.total}, ${perSecond}/s, ${tick.inFlight} in flight, ${tick.failed} failed`;
      stream.write(tick.note === '' ? `${counts}, ${eta(tick, perSecond)}\n` : `${tick.note}\n`);
    },
    stop() {
      // nothing is drawn that would have to be ended
    },
  };
}

type Rate = (done: number) => number;

/** Lines a second over the last few seconds. */
function createRate(): Rate {
  const seen: { at: number; done: number }[] = [];
  return function rate(done) {
    const now = performance.now();
    seen.push({ at: now, done });
    while (seen.length > 2 && now - (seen[0]?.at ?? now) > RATE_WINDOW_MS) seen.shift();
    const first = seen[0] ?? { at: now, done };
    return now > first.at ? Math.round(((done - first.done) * 1_000) / (now - first.at)) : 0;
  };
}

function doneOf({ total, completed, failed, uncommitted }: Tick): number {
  return Math.min(total, completed + failed + uncommitted);
}

function eta(tick: Tick, perSecond: number): string {
  const left = tick.total - doneOf(tick);
  if (left <= 0) return 'done';
  if (perSecond <= 0) return 'ETA -';
  const seconds = Math.ceil(left / perSecond);
  if (seconds < 120) return `ETA ${seconds}s`;
  return seconds < 7_200 ? `ETA ${Math.ceil(seconds / 60)}m` : `ETA ${Math.ceil(seconds / 3_600)}h`;
}
