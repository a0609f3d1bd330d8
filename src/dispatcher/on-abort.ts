const listening = new WeakMap<AbortSignal, Set<() => void>>();

/**
 * Runs `task` when the signal is aborted, unless the returned function is called before. A signal gets one listener
 * however many tasks wait for it: thousands of requests share one, and listeners of their own cost more than they do.
 */
export function onAbort(signal: AbortSignal, task: () => void): () => void {
  const tasks = listening.get(signal) ?? listen(signal);
  tasks.add(task);
  return () => tasks.delete(task);
}

function listen(signal: AbortSignal): Set<() => void> {
  const tasks = new Set<() => void>();
  listening.set(signal, tasks);
  function abortAll(): void {
    const due = [...tasks];
    tasks.clear();
    for (const task of due) task();
  }
  signal.addEventListener('abort', abortAll, { once: true });
  return tasks;
}
