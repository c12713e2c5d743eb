// Formatting of drafts and figures. Content is always inserted as text, never as HTML.

const HALF_TYPED = /\S*$/u;

export const formatMs = (ms) => `${ms < 10 ? ms.toFixed(1) : Math.round(ms)} ms`;

export const cachedOf = (usage) => `${usage.cached_tokens} of ${usage.prompt_tokens}`;

export const numbered = (count, noun) => `${count} ${noun}${count === 1 ? "" : "s"}`;

/** A probability as a percentage. */
export function formatPercent(share) {
  return share > 0 && share < 0.005 ? "< 1\u2009%" : `${Math.round(share * 100)}\u2009%`;
}

/**
 * The elements of a draft: its text, after the unfinished word of the prompt that it completes, unless it `replaces` that
 * word, and its probability, if that is known.
 */
export function draftParts(prompt, text, probability, replaces = "") {
  const words = element("span", "words", "");
  words.append(element("span", "typed", replaces ? "" : HALF_TYPED.exec(prompt)[0]), text);
  return probability === null ? [words] : [words, chance(probability)];
}

/** A probability as a bar and a percentage. */
function chance(share) {
  const bar = element("span", "bar", "");
  const fill = element("span", "fill", "");
  fill.style.inlineSize = `${share * 100}%`;
  bar.append(fill);
  const percent = element("span", "percent", formatPercent(share));
  percent.prepend(element("span", "unseen", "probability "));
  const both = element("span", "chance", "");
  both.append(bar, percent);
  return both;
}

export function element(tag, className, text) {
  const made = document.createElement(tag);
  made.className = className;
  made.textContent = text;
  return made;
}
