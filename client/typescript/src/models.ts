// Types of the server's requests and responses. Fields have the names of the HTTP API.

export type FinishReason = "stop" | "length" | "improbable";

/** The end of the prompt that a draft takes the place of, as it was mistyped. */
export interface Replaces {
  /** How many characters, in Unicode code points. */
  characters: number;
  text: string;
}

/** One draft. */
export interface Draft {
  /** Rank; 0 is the best. */
  index: number;
  /** The continuation; it begins right after the prompt, or in the place of `replaces`. */
  text: string;
  /** What the draft corrects; null: it is only added. Not null only with `corrections: "on"`. */
  replaces: Replaces | null;
  tokens: string[];
  token_ids: number[];
  /**
   * The value that drafts are ranked by. With the selection "distinct", ln of the probability that the text continues
   * with the draft's first word, given the typed text; otherwise a mean over the draft's tokens.
   */
  score: number;
  /** Natural log. The first is exact, given the typed text; the others are exact if the draft has its own row. */
  token_logprobs: number[];
  finish_reason: FinishReason;
}

/**
 * Amount of work. `forward_rows` counts model rows over all decode steps; drafts that share a row count once.
 * `rows_by_depth`: rows that fed the drafts' first tokens, their second ones, and so on. `reused_drafts`: drafts that
 * took no row, since an earlier request had decoded them. `limited_by_load`: drafts are shorter, or fewer of them grew,
 * because the server had much to do.
 */
export interface Usage {
  prompt_tokens: number;
  completion_tokens: number;
  total_tokens: number;
  cached_tokens: number;
  forward_rows: number;
  rows_by_depth: number[];
  reused_drafts: number;
  limited_by_load: boolean;
}

/** Milliseconds spent on the server. `ngram_ms` is included in `prefill_ms` and `decode_ms`. */
export interface Timings {
  queue_ms: number;
  prefill_ms: number;
  decode_ms: number;
  ngram_ms: number;
  total_ms: number;
}

/** The drafts for one prompt, best first. */
export interface DraftsAnswer {
  object: "drafts";
  /** Identifies the completion in feedback. */
  id: string;
  model: string;
  drafts: Draft[];
  usage: Usage;
  timings: Timings;
  warnings: string[];
}

/** One draft while it grows; a later snapshot may replace it. */
export interface SnapshotDraft {
  index: number;
  text: string;
  replaces: Replaces | null;
  score: number;
}

/** The growing drafts after one decode step. */
export interface Snapshot {
  object: "drafts.snapshot";
  /** The id of the final answer. */
  id: string;
  /** Counts from 1; snapshots are skipped if the reader is too slow. */
  step: number;
  /** The beginning of the first draft, as far as it will not change any more. */
  stable_text: string;
  drafts: SnapshotDraft[];
  /** As in `Usage`, so far. */
  rows_by_depth: number[];
}

export type FeedbackEvent = "shown" | "accepted" | "dismissed";

export interface FeedbackReceipt {
  /** The draft's rank within its run; 0 is the best. */
  rank: number;
  /** False if the same event was received before. */
  counted: boolean;
}

/** A value for the option `model`. */
export interface Model {
  id: string;
  owned_by: string;
  created: number;
  max_model_len: number;
}

/** An n-gram model on the server. */
export interface NgramModel {
  name: string;
  order: number | null;
  size_bytes: number | null;
  tokenizer: string | null;
  fits_tokenizer: boolean;
  loaded: boolean;
}

/** What requests may ask for on this server. */
export interface Limits {
  model: string;
  max_model_len: number;
  max_tokens: number;
  max_num_drafts: number;
  max_branches: number;
  max_body_bytes: number;
  max_timeout_ms: number;
  strategies: string[];
  default_strategy: string;
  token_healing: boolean;
  /** The default of requests with the trigger "automatic". */
  min_probability_shown: number;
  /** Whether the model sees the text after the cursor. */
  sees_suffix: boolean;
}

/** Optional fields of `POST /v1/drafts`; the server chooses the missing ones. See docs/http-api.md. */
export interface DraftsOptions {
  num_drafts?: number;
  max_tokens?: number;
  model?: string;
  stop?: string | readonly string[];
  strategy?: string;
  selection?: string;
  max_branches?: number;
  min_probability?: number;
  min_draft_tokens?: number;
  elastic?: boolean;
  alpha?: number;
  tau?: number;
  candidates_per_draft?: number;
  /** null: no n-gram model. */
  ngram_model?: string | Readonly<Record<string, number>> | null;
  num_branches?: number;
  temperature?: number;
  top_p?: number;
  seed?: number;
  reset_every?: number;
  logit_bias?: Readonly<Record<number, number>>;
  frequency_penalty?: number;
  presence_penalty?: number;
  token_healing?: boolean;
  corrections?: "on" | "off";
  single_line?: boolean;
  trim?: string;
  min_score?: number;
  suffix?: string;
  trigger?: string;
  path?: string;
  min_probability_shown?: number;
  session_id?: string;
  timeout_ms?: number;
}
