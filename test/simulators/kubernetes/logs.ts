import { EventEmitter } from 'node:events';

/** What one run of a container wrote, line by line with its time, as a container runtime keeps it. */
export interface ContainerLog {
  write(text: string): void;
  /** No more will come. */
  end(): void;
  lines(): readonly { at: number; text: string }[];
  ended(): boolean;
  /** Fires `line` and `end`. */
  events: EventEmitter;
}

/** Beyond it the oldest lines go, as when a node rotates its logs. */
const MOST_LINES = 100_000;

export function createLog(): ContainerLog {
  let lines: { at: number; text: string }[] = [];
  let rest = '';
  let over = false;
  const events = new EventEmitter();
  events.setMaxListeners(0);

  function push(text: string): void {
    lines.push({ at: Date.now(), text });
    if (lines.length > MOST_LINES) lines = lines.slice(MOST_LINES / 2);
    events.emit('line', lines.at(-1));
  }

  return {
    events,
    write(text) {
      const parts = (rest + text).split('\n');
      rest = parts.pop() ?? '';
      for (const part of parts) push(part);
    },
    end() {
      if (over) return;
      if (rest !== '') push(rest);
      rest = '';
      over = true;
      events.emit('end');
    },
    lines: () => lines,
    ended: () => over,
  };
}
