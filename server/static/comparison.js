// Comparison of superposed drafts with the same number of sampled drafts for one prompt.

import { probability } from "./client/index.js";
import { cachedOf, draftParts, formatMs } from "./view.js";

const byId = (id) => document.getElementById(id);

/**
 * Run both methods and show the results.
 *
 * @param {import("./client/client.js").Superdraft} client
 * @param {string} prompt
 * @param {object} options of the requests: without a session id, so that typing does not cancel it, and without a
 *   trigger, so that nothing is withheld.
 * @param {number} maxBranches the maximum number of rows that the server samples in parallel.
 */
export async function compare(client, prompt, options, maxBranches) {
  const numSamples = Math.min(options.num_drafts, maxBranches);
  // A bias of zero changes no draft, but the server does not answer with what it drafted while the text was typed.
  options = { ...options, logit_bias: { 0: 0 } };
  if (options.trim === "none") options.trim = "word"; // drafts for a person are tidied; these are not
  // Process the prompt first, so that both methods find it in the cache and neither pays for it.
  await client.complete(prompt, { ...options, strategy: "superposed", max_tokens: 0 });
  const superposed = await client.complete(prompt, { ...options, strategy: "superposed" });
  const { ngram_model: _, max_branches: __, ...rest } = options; // have no effect on sampling
  const sampling = { ...rest, strategy: "sample", num_drafts: numSamples, num_branches: numSamples };
  const sampled = await client.complete(prompt, sampling);
  show("superposed", superposed, prompt);
  show("sampled", sampled, prompt);
  byId("superposed-title").textContent = `Superposed, k = ${options.num_drafts}`;
  byId("sampled-title").textContent = `${numSamples} × sampling`;
  byId("sides").hidden = false;
  byId("verdict").textContent = verdict(superposed, sampled);
}

function show(side, answer, prompt) {
  byId(`${side}-rows`).textContent = answer.usage.forward_rows;
  byId(`${side}-ms`).textContent = formatMs(answer.timings.total_ms);
  byId(`${side}-cached`).textContent = cachedOf(answer.usage);
  const items = answer.drafts.map((draft) => {
    const item = document.createElement("li");
    item.append(...draftParts(prompt, draft.text, probability(draft)));
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
