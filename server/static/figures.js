// Figures of the latest answer, and the model's rows in total.

import { cachedOf, element, formatMs, numbered } from "./view.js";

const LIMITED = "Drafts are shorter, or fewer grew, because the server has much to do.";

const byId = (id) => document.getElementById(id);

let numRows = 0;

/** Show how long the latest request took until its first snapshot. */
export function showFirst(ms) {
  byId("first").textContent = formatMs(ms);
}

/** Show an answer's figures; it took `ms` as seen by the browser. */
export function showAnswer({ usage, timings, drafts, warnings }, ms) {
  numRows += usage.forward_rows;
  byId("latency").textContent = formatMs(ms);
  byId("server-time").textContent = formatMs(timings.total_ms);
  byId("cached").textContent = cachedOf(usage);
  byId("rows").textContent = `${usage.forward_rows} (${numbered(drafts.length, "draft")} shown)`;
  byId("all-rows").textContent = numRows;
  const notes = usage.limited_by_load ? [...warnings, LIMITED] : warnings;
  byId("warnings").replaceChildren(...notes.map((note) => element("li", "", note)));
}
