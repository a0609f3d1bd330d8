/** From here on the clock of this process is eight hours ahead: what was written a moment ago is old to it. */
const now = Date.now;
Date.now = () => now() + 8 * 3_600_000;
