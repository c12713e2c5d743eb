// Comparison of superposed drafts with the same number of sampled drafts for one prompt.

import { postDrafts } from "./api.js";
import { cachedOf, draftParts, formatMs } from "./view.js";

const byId = (id) => document.getElementById(id);

/**
 * Run both methods and show the results.
 *
 * @param {object} body a request for drafts, without a session id, so that typing does not cancel it.
 * @param {number} maxBranches the maximum number of rows that the server samples in parallel.
 */
export async function compare(body, maxBranches) {
  const numSamples = Math.min(body.num_drafts, maxBranches);
  // Process the prompt first, so that both methods find it in the cache and neither pays for it.
  await postDrafts({ ...body, strategy: "superposed", max_tokens: 0 });
  const superposed = await postDrafts({ ...body, strategy: "superposed" });
  const { ngram_model: _, ...rest } = body; // has no effect on sampling and would cause a warning
  const sampled = await postDrafts({ ...rest, strategy: "sample", num_drafts: numSamples, num_branches: numSamples });
  show("superposed", superposed, body);
  show("sampled", sampled, body);
  byId("superposed-title").textContent = `Superposed, k = ${body.num_drafts}`;
  byId("sampled-title").textContent = `${numSamples} × sampling`;
  byId("sides").hidden = false;
  byId("verdict").textContent = verdict(superposed, sampled);
}

function show(side, answer, body) {
  byId(`${side}-rows`).textContent = answer.usage.forward_rows;
  byId(`${side}-ms`).textContent = formatMs(answer.timings.total_ms);
  byId(`${side}-cached`).textContent = cachedOf(answer.usage);
  const items = answer.drafts.map((draft) => {
    const item = document.createElement("li");
    item.append(...draftParts(body.prompt, draft));
    return item;
  });
  byId(`${side}-drafts`).replaceChildren(...items);
}

function verdict(superposed, sampled) {
  const ratio = (a, b) => (b > 0 ? (a / b).toFixed(1) : "–");
  const rows = ratio(sampled.usage.forward_rows, superposed.usage.forward_rows);
  const time = ratio(sampled.timings.total_ms, superposed.timings.total_ms);
  return (
    `Sampling used ${rows} times as many model rows and took ${time} times as long. It produced ` +
    `${sampled.drafts.length} distinct drafts, superposition ${superposed.drafts.length}.`
  );
}
