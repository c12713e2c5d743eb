// Feedback events: which drafts the user saw, accepted and dismissed.
//
// - shown: the draft was on the screen for 250 ms.
// - accepted: the user accepted all or part of the draft.
// - dismissed: the draft was shown, is no longer on the screen, and was not accepted within 10 s.
//
// A draft that the user accepts or dismisses explicitly counts as shown, however quickly this happens. The server
// counts events of finished answers only, so a draft is on record once its answer is complete.

import type { FeedbackEvent } from "./models.ts";
import type { Suggestion } from "./suggestions.ts";

export const SHOWN_AFTER_MS = 250;
const DISMISSED_AFTER_MS = 10_000;
const KEPT_SETTLED = 256;

/** An event to send with a client's method `feedback`. */
export interface Report {
  readonly kind: "report";
  readonly completionId: string;
  readonly event: FeedbackEvent;
  readonly rank: number;
  /** Milliseconds since the draft appeared on the screen; undefined for "shown". */
  readonly elapsedMs?: number;
}

interface Viewing {
  readonly completionId: string;
  readonly rank: number;
  readonly sinceMs: number;
  isShown: boolean;
  isPartlyAccepted: boolean;
}

const keyOf = (draft: { completionId: string; rank: number }): string => `${draft.rank} ${draft.completionId}`;

/** Follows the ghost text and creates feedback events, each at most once per draft. */
export class DisplayLog {
  readonly #viewings = new Map<string, Viewing>();
  readonly #settled = new Set<string>();
  #current: string | null = null;
  #reports: Report[] = [];

  /** Record that `ghost` is on the screen from now on. */
  show(ghost: Suggestion | null, nowMs: number): void {
    this.#passTime(nowMs);
    const key = ghost === null || ghost.isGrowing || this.#settled.has(keyOf(ghost)) ? null : keyOf(ghost);
    if (key === this.#current) return;
    const left = this.#current;
    this.#current = key;
    if (left !== null) this.#leave(left, nowMs);
    if (ghost !== null && key !== null && !this.#viewings.has(key)) {
      const { completionId, rank } = ghost;
      this.#viewings.set(key, { completionId, rank, sinceMs: nowMs, isShown: false, isPartlyAccepted: false });
    }
  }

  /**
   * Record that all or part of the draft was accepted. A part is not reported until the draft leaves the screen,
   * because the user may accept more of it.
   */
  accept(ghost: Suggestion, nowMs: number, isWhole: boolean): void {
    const viewing = this.#viewings.get(keyOf(ghost));
    if (viewing === undefined) return;
    viewing.isPartlyAccepted = true;
    if (isWhole) this.#settle(keyOf(ghost), "accepted", nowMs);
  }

  /** Record that the user dismissed the draft on the screen. */
  dismiss(nowMs: number): void {
    if (this.#current === null) return;
    const viewing = this.#viewings.get(this.#current)!;
    this.#settle(this.#current, viewing.isPartlyAccepted ? "accepted" : "dismissed", nowMs);
  }

  /** Record that no draft can be accepted any more. */
  close(nowMs: number): void {
    this.show(null, nowMs);
    for (const key of [...this.#viewings.keys()]) this.#settle(key, "dismissed", nowMs);
  }

  /** Return the events up to now that have not been returned before. */
  takeReports(nowMs: number): Report[] {
    this.#passTime(nowMs);
    const reports = this.#reports;
    this.#reports = [];
    return reports;
  }

  /** Time of the next event if nothing else happens first. */
  get nextMs(): number | null {
    const due = [...this.#viewings.keys()].map((key) => this.#dueMs(key)).filter((dueMs) => dueMs !== null);
    return due.length > 0 ? Math.min(...due) : null;
  }

  #dueMs(key: string): number | null {
    const viewing = this.#viewings.get(key)!;
    if (key !== this.#current) return viewing.sinceMs + DISMISSED_AFTER_MS;
    return viewing.isShown ? null : viewing.sinceMs + SHOWN_AFTER_MS;
  }

  #passTime(nowMs: number): void {
    for (const key of [...this.#viewings.keys()]) {
      const dueMs = this.#dueMs(key);
      if (dueMs === null || dueMs > nowMs) continue;
      if (key === this.#current) this.#reportShown(key);
      else this.#settle(key, "dismissed", nowMs);
    }
  }

  #leave(key: string, nowMs: number): void {
    const viewing = this.#viewings.get(key);
    if (viewing === undefined) return;
    if (viewing.isPartlyAccepted) this.#settle(key, "accepted", nowMs);
    else if (!viewing.isShown) this.#viewings.delete(key);
    else this.#passTime(nowMs);
  }

  #settle(key: string, event: FeedbackEvent, nowMs: number): void {
    this.#reportShown(key);
    const { completionId, rank, sinceMs } = this.#viewings.get(key)!;
    this.#viewings.delete(key);
    if (this.#current === key) this.#current = null;
    this.#settled.add(key);
    if (this.#settled.size > KEPT_SETTLED) this.#settled.delete(this.#settled.keys().next().value!);
    const elapsedMs = Math.round((nowMs - sinceMs) * 10) / 10;
    this.#reports.push({ kind: "report", completionId, event, rank, elapsedMs });
  }

  #reportShown(key: string): void {
    const viewing = this.#viewings.get(key)!;
    if (viewing.isShown) return;
    viewing.isShown = true;
    const { completionId, rank } = viewing;
    this.#reports.push({ kind: "report", completionId, event: "shown", rank });
  }
}
