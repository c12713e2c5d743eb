// Monitor for the server's availability. It polls more often while the server is down.

import { isReady } from "./connection.js";

const CALM_MS = 5000;
const DOWN_MS = 1000;

export class Watch {
  /** @param {function(boolean)} onChange called with true when the server comes up and with false when it goes down. */
  constructor(onChange) {
    this.onChange = onChange;
    this.isUp = true;
    this.plan();
    document.addEventListener("visibilitychange", () => document.hidden || this.look());
  }

  /** Record that a request could not be served. */
  lost() {
    this.settle(false);
    this.plan();
  }

  plan() {
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.look(), this.isUp ? CALM_MS : DOWN_MS);
  }

  async look() {
    clearTimeout(this.timer);
    if (!document.hidden) this.settle(await isReady());
    this.plan();
  }

  settle(isUp) {
    if (isUp === this.isUp) return;
    this.isUp = isUp;
    this.onChange(isUp);
  }
}
