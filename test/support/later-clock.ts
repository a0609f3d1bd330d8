/** From here on the clock of this process is two hours ahead: what was written a moment ago is old to it. */
const now = Date.now;
Date.now = () => now() + 2 * 3_600_000;
