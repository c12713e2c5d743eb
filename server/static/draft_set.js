// Set of drafts for one text, and its changes as the text grows. Independent of the page and the server.

const words = new Intl.Segmenter(undefined, { granularity: "word" });

/** The first word of a text, with the white space before it. */
export function firstWord(text) {
  let word = "";
  for (const { segment } of words.segment(text)) {
    word += segment;
    if (segment.trim()) break;
  }
  return word;
}

/** Drafts `{text, score}` that continue `prompt`, best first, and the index of the one shown. */
export class DraftSet {
  constructor(prompt = "", drafts = [], shown = 0) {
    this.prompt = prompt;
    this.drafts = drafts.filter((draft) => draft.text !== "");
    this.shown = Math.max(0, Math.min(shown, this.drafts.length - 1));
  }

  get current() {
    return this.drafts[this.shown] ?? null;
  }

  /** The set after the user typed more, up to `prompt`: the drafts that match it, without the part already typed. */
  typedOn(prompt) {
    if (!prompt.startsWith(this.prompt)) return new DraftSet(prompt);
    const typed = prompt.slice(this.prompt.length);
    const kept = this.drafts.filter((draft) => draft.text.startsWith(typed) && draft.text !== typed);
    const rest = kept.map((draft) => ({ ...draft, text: draft.text.slice(typed.length) }));
    return new DraftSet(prompt, rest, kept.indexOf(this.current));
  }

  /** The set with the next (1) or the previous (-1) draft shown, wrapping around at the ends. */
  turned(by) {
    const count = this.drafts.length;
    return new DraftSet(this.prompt, this.drafts, (this.shown + by + count) % count);
  }

  /** The set with newer drafts for the same prompt. A draft that the user switched to stays shown if possible. */
  renewed(drafts) {
    const newer = new DraftSet(this.prompt, drafts);
    const chosen = this.shown > 0 ? this.current.text : null;
    const at = chosen === null ? 0 : newer.drafts.findIndex((draft) => draft.text.startsWith(chosen));
    return new DraftSet(this.prompt, drafts, at);
  }
}
