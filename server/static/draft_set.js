// The drafts that go on from one text, and what becomes of them while that text grows. Draws nothing, asks nothing.

const words = new Intl.Segmenter(undefined, { granularity: "word" });

/** The first word of a text, with the space before it. */
export function firstWord(text) {
  let word = "";
  for (const { segment } of words.segment(text)) {
    word += segment;
    if (segment.trim()) break;
  }
  return word;
}

/** Drafts `{text, score}`, best first, that go on from `prompt`, and which of them is shown. */
export class DraftSet {
  constructor(prompt = "", drafts = [], shown = 0) {
    this.prompt = prompt;
    this.drafts = drafts.filter((draft) => draft.text !== "");
    this.shown = Math.max(0, Math.min(shown, this.drafts.length - 1));
  }

  get current() {
    return this.drafts[this.shown] ?? null;
  }

  /** The set after the user typed on to `prompt`: the drafts that say the same, less what was typed. */
  typedOn(prompt) {
    if (!prompt.startsWith(this.prompt)) return new DraftSet(prompt);
    const typed = prompt.slice(this.prompt.length);
    const kept = this.drafts.filter((draft) => draft.text.startsWith(typed) && draft.text !== typed);
    const rest = kept.map((draft) => ({ ...draft, text: draft.text.slice(typed.length) }));
    return new DraftSet(prompt, rest, kept.indexOf(this.current));
  }

  /** The set with another draft shown: the next (1) or the previous one (-1), in a circle. */
  turned(by) {
    const count = this.drafts.length;
    return new DraftSet(this.prompt, this.drafts, (this.shown + by + count) % count);
  }

  /** Newer drafts for the same prompt. One that the user has turned to stays shown if it is among them. */
  renewed(drafts) {
    const newer = new DraftSet(this.prompt, drafts);
    const chosen = this.shown > 0 ? this.current.text : null;
    const at = chosen === null ? 0 : newer.drafts.findIndex((draft) => draft.text.startsWith(chosen));
    return new DraftSet(this.prompt, drafts, at);
  }
}
