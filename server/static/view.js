// Formatting of drafts and figures. Content is always inserted as text, never as HTML.

const HALF_TYPED = /\S*$/u;

export const formatMs = (ms) => `${ms < 10 ? ms.toFixed(1) : Math.round(ms)} ms`;

export const cachedOf = (usage) => `${usage.cached_tokens} of ${usage.prompt_tokens}`;

/** The elements of a draft: its text, after the unfinished word of the prompt that it completes, and its score. */
export function draftParts(prompt, draft) {
  const typed = element("span", "typed", HALF_TYPED.exec(prompt)[0]);
  const words = element("span", "words", "");
  words.append(typed, draft.text);
  const score = element("span", "score", draft.score.toFixed(2).replace("-", "\u2212"));
  score.prepend(element("span", "unseen", "score "));
  return [words, score];
}

function element(tag, className, text) {
  const made = document.createElement(tag);
  made.className = className;
  made.textContent = text;
  return made;
}
