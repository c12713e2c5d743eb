// Suggestions for the current text, and the cache of answers that they are taken from.

import type { Draft, SnapshotDraft } from "./models.ts";

const WORD = /^\s*\S+/;
const MAX_KEPT_WORDS = 1000;
const MAX_WORD_CHARS = 64;
const LETTERS = /\p{L}+(?:['\u2019]\p{L}+)?/gu;
const TYPED_WORD = /(\p{L}+(?:['\u2019]\p{L}+)?)( ?)$/u;
const UNSPACED = /[\p{Script=Han}\p{Script=Hiragana}\p{Script=Katakana}\p{Script=Thai}\p{Script=Lao}\p{Script=Khmer}]/u;
const LAST_WORD = /(\S)\s+\S*$/;

/** The rest of a draft of which the user may have typed the beginning. */
export interface Suggestion {
  /** Id of the answer that contains the draft. */
  readonly completionId: string;
  /** Rank of the draft in the answer; 0 is the best. */
  readonly rank: number;
  /** The text to insert at the cursor; never empty. */
  readonly text: string;
  /** The whole draft, with the part that is already in the text. */
  readonly draft: string;
  /** Score of the draft, see `Draft`; that of the moment when drafts were requested. */
  readonly score: number;
  /** Probability of the first word that is not complete yet, see `nextProbability`; null if it is not known. */
  readonly probability: number | null;
  /** Whether the draft may still change: its answer is not complete. */
  readonly isGrowing: boolean;
  /** The end of the text before the cursor that goes when `text` is inserted, since it was mistyped. */
  readonly replaces: string;
}

/** What the editor should show. */
export interface Display {
  /** The text before the cursor. */
  readonly text: string;
  /** Continuations of `text`, best first. */
  readonly suggestions: readonly Suggestion[];
  /** Index of the suggestion to show as ghost text. */
  readonly selected: number;
  /** The selected suggestion, or null if there are no suggestions. */
  readonly ghost: Suggestion | null;
}

/** Build a display; its ghost text follows from the other values. */
export function display(text: string, suggestions: readonly Suggestion[] = [], selected = 0): Display {
  return { text, suggestions, selected, ghost: suggestions[selected] ?? null };
}

/** The first word of a text with the white space before it, or all of the text if it contains no word. */
export function firstWord(text: string): string {
  const word = WORD.exec(text)?.[0] ?? text;
  if (!UNSPACED.test(word)) return word;
  // Scripts without spaces: a word is what the language's own rules say.
  const segments = [...new Intl.Segmenter(undefined, { granularity: "word" }).segment(word)];
  const end = segments.findIndex(({ segment }) => segment.trim() !== "");
  return segments
    .slice(0, end + 1)
    .map(({ segment }) => segment)
    .join("");
}

/** The probability that a draft's score stands for, with the selection "distinct": that of its first word. */
export function probability({ score }: { readonly score: number }): number {
  return Math.min(1, Math.exp(score));
}

/**
 * The probability of a draft's next word, of which `numTyped` characters of the draft have been typed.
 *
 * For the first word this is what the score stands for. Typing a part of the word makes it more probable, by how much
 * is not known. For later words it is the product of the probabilities of the tokens that are not typed yet; it is null
 * while the draft grows, since snapshots have no tokens.
 */
export function nextProbability(draft: SnapshotDraft | Draft, numTyped: number): number | null {
  if (numTyped < firstWord(draft.text).length) return probability(draft);
  if (!("token_logprobs" in draft)) return null;
  const end = numTyped + firstWord(draft.text.slice(numTyped)).length;
  let [at, logprob] = [0, 0];
  draft.tokens.forEach((token, index) => {
    if (at >= numTyped && at < end) logprob += draft.token_logprobs[index] ?? 0;
    at += token.length;
  });
  return Math.min(1, Math.exp(logprob));
}

/** The part of a growing draft to show: without a last word that may be unfinished, unless it is the only one. */
export function shownWhileGrowing(text: string, isSingleLine: boolean): string {
  const line = isSingleLine ? text.split("\n", 1)[0]! : text;
  return line === text ? line.replace(LAST_WORD, "$1") : line;
}

interface Entry {
  readonly text: string;
  readonly after: string;
  readonly id: string;
  readonly drafts: readonly (SnapshotDraft | Draft)[];
  readonly isGrowing: boolean;
}

/** A least-recently-used cache of answers, by the texts before and after the cursor that they are for. */
export class AnswerCache {
  readonly #maxAnswers: number;
  readonly #entries = new Map<string, Entry>(); // oldest first
  readonly #keptWords = new Set<string>(); // oldest first

  constructor(maxAnswers: number) {
    this.#maxAnswers = maxAnswers;
  }

  /** Store the answer to a request for `text`, with `after` behind the cursor, or the part of it that there is. */
  put(text: string, after: string, id: string, drafts: readonly (SnapshotDraft | Draft)[], isGrowing = false): void {
    this.#use({ text, after, id, drafts, isGrowing });
    if (this.#entries.size > this.#maxAnswers) this.#entries.delete(this.#entries.keys().next().value!);
  }

  /** Store the drafts for `text` that replace the end of it once more, for the text before that end. */
  putCorrected(text: string, after: string, replaced: string): void {
    const entry = this.#entries.get(keyOf(text, after));
    const drafts = (entry?.drafts ?? []).filter((draft) => draft.replaces?.text === replaced);
    const before = text.slice(0, text.length - replaced.length);
    this.put(
      before,
      after,
      entry?.id ?? "",
      drafts.map((draft) => ({ ...draft, replaces: null })),
    );
  }

  /** Correct none of these words from now on. */
  keep(words: string): void {
    for (const [word] of words.toLowerCase().matchAll(LETTERS)) {
      this.#keptWords.delete(word);
      this.#keptWords.add(word);
      if (this.#keptWords.size > MAX_KEPT_WORDS) this.#keptWords.delete(this.#keptWords.values().next().value!);
    }
  }

  /** Whether the word at the end of `text` is none that is kept, nor the beginning of one. */
  mayCorrect(text: string): boolean {
    const [, word, blank] = TYPED_WORD.exec(text.slice(-MAX_WORD_CHARS).toLowerCase()) ?? [];
    if (word === undefined) return true;
    return ![...this.#keptWords].some((kept) => (blank === " " ? kept === word : kept.startsWith(word)));
  }

  /** Remove the answer to a request for `text`, with `after` behind the cursor. */
  drop(text: string, after: string): void {
    this.#entries.delete(keyOf(text, after));
  }

  clear(): void {
    this.#entries.clear();
  }

  /**
   * The suggestions for `text`, with `after` behind the cursor.
   *
   * They come from the answer to the longest beginning of `text` that has a draft which agrees with the rest. The
   * result is empty if the server was asked for exactly this text and had no draft, null if it should be asked.
   */
  find(text: string, after: string): Suggestion[] | null {
    const known = [...this.#entries.values()]
      .filter((entry) => entry.after === after && text.startsWith(entry.text))
      .sort((a, b) => b.text.length - a.text.length);
    for (const entry of known) {
      const typed = text.slice(entry.text.length);
      // A correction belongs to the text that it corrects: whoever types on has not taken it.
      const found = fitting(entry, typed, typed === "" && this.mayCorrect(text));
      if (found.length > 0) {
        this.#use(entry);
        return found;
      }
    }
    return this.#entries.has(keyOf(text, after)) ? [] : null;
  }

  #use(entry: Entry): void {
    const key = keyOf(entry.text, entry.after);
    this.#entries.delete(key);
    this.#entries.set(key, entry);
  }
}

const keyOf = (text: string, after: string): string => `${text.length} ${text}${after}`;

function fitting({ id, drafts, isGrowing }: Entry, typed: string, mayCorrect: boolean): Suggestion[] {
  return drafts
    .filter((draft) => draft.text.length > typed.length && draft.text.startsWith(typed))
    .filter((draft) => !draft.replaces || mayCorrect)
    .map((draft) => ({
      completionId: id,
      rank: draft.index,
      text: draft.text.slice(typed.length),
      draft: draft.text,
      score: draft.score,
      probability: nextProbability(draft, typed.length),
      isGrowing,
      replaces: draft.replaces?.text ?? "",
    }));
}
