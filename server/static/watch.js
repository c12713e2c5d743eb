// Whether the server is there: asked now and then, and more often while it is not.

import { isReady } from "./api.js";

const CALM_MS = 5000;
const DOWN_MS = 1000;

export class Watch {
  /** @param {function(boolean)} onChange called with whether it is there, each time that this changes. */
  constructor(onChange) {
    this.onChange = onChange;
    this.isUp = true;
    this.plan();
    document.addEventListener("visibilitychange", () => document.hidden || this.look());
  }

  /** A request found no server that takes it. */
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
