/* Asking the server again and again. */

export const IDLE_MS = 10_000; // how often a page asks whether a run that ended has been taken up again

function logged(error) {
  console.error(error);
  return IDLE_MS;
}

/**
 * Ask again and again while the page is looked at; `ask` says after how many milliseconds, 0: never again. One that
 * fails goes to the console, and is asked again as rarely as of a run that ended.
 */
export class Poll {
  constructor(root, ask) {
    this.root = root;
    this.ask = ask;
    this.running = false;
    this.wanted = false;
    this.wake = () => {};
    document.addEventListener("visibilitychange", () => !document.hidden && this.wanted && this.start());
  }

  /** Begin, or ask at once if it is running. */
  async start() {
    this.wanted = true;
    this.wake();
    if (this.running) return;
    this.running = true;
    while (this.wanted && this.root.isConnected) {
      const seen = !document.hidden && this.root.offsetParent !== null;
      const pause = seen ? await this.ask().catch(logged) : 1000;
      this.wanted = pause > 0;
      if (!this.wanted) break;
      await new Promise((resolve) => {
        this.wake = () => resolve(null);
        setTimeout(resolve, pause);
      });
    }
    this.running = false;
  }
}
