// Tests of the typing session's streams, and of the client's parser. Run with `node --test tests/node`.

import assert from "node:assert/strict";
import { test } from "node:test";

const built = new URL("../../server/static/client/", import.meta.url);
const { StatusError, BadRequestError, TypingSession, firstWord, nextProbability, probability } = await import(
  new URL("index.js", built)
);
const { EventParser } = await import(new URL("sse.js", built));

/** A session with a manual clock. */
class Bench {
  constructor(options = {}) {
    this.nowMs = 1000;
    this.session = new TypingSession({ requestsPerKey: 1, maxDelayMs: 0, ...options }, () => this.nowMs);
  }

  type(text, pauseMs = 120) {
    const actions = [];
    for (const char of text) {
      this.nowMs += pauseMs;
      actions.push(...this.session.edit(this.session.text + char));
    }
    return actions;
  }

  /** A snapshot of, or the answer to, request `id`, after `ms`. */
  grow(id, texts, ms = 50) {
    this.nowMs += ms;
    return this.session.grown(id, { id: `drafts-${id}`, step: 1, stable_text: "", drafts: draftsOf(texts) });
  }

  answer(id, texts, ms = 50) {
    this.nowMs += ms;
    return this.session.answered(id, { id: `drafts-${id}`, drafts: draftsOf(texts) });
  }

  get ghost() {
    return this.session.display.ghost?.text ?? null;
  }
}

const draftsOf = (texts, replaces = null) => texts.map((text, index) => ({ index, text, score: -1 - index, replaces }));
const kinds = (actions) => actions.map(({ kind }) => kind);

test("a growing draft is shown, without a last word that may be unfinished", () => {
  const bench = new Bench();
  assert.deepEqual(kinds(bench.type("a")), ["send"]);
  bench.grow(1, [" re"]);
  assert.equal(bench.ghost, " re"); // the only word
  bench.grow(1, [" red gre"]);
  assert.equal(bench.ghost, " red");
  bench.answer(1, [" red green"]);
  assert.equal(bench.ghost, " red green");
  assert.equal(bench.session.isWaiting, false);
});

test("a growing draft stays while the text agrees with it, and its request goes on", () => {
  const bench = new Bench();
  bench.type("a");
  bench.grow(1, [" red", " blue"]);
  assert.deepEqual(kinds(bench.type(" re")), []);
  assert.equal(bench.ghost, "d");
  assert.deepEqual(kinds(bench.type("d")), []); // the draft is used up, but it may grow
  assert.equal(bench.ghost, null);
  assert.deepEqual(kinds(bench.grow(1, [" red green blue"])), []);
  assert.equal(bench.ghost, " green");
});

test("a request whose growing drafts all disagree is replaced at once", () => {
  const bench = new Bench();
  bench.type("a");
  bench.grow(1, [" red"]);
  assert.deepEqual(kinds(bench.type(" x")), ["cancel", "send"]);
  assert.equal(bench.ghost, null);
  assert.deepEqual(bench.grow(1, [" red green"]), []); // too late
  assert.equal(bench.ghost, null);
  bench.session.edit("a");
  assert.equal(bench.ghost, null); // an unfinished answer is not kept
});

test("a server that is slower than the keys still gets the time to answer", () => {
  const [latencyMs, pauseMs, numKeys] = [700, 120, 60];
  const bench = new Bench();
  const { session } = bench;
  let pending = null; // the request that the server works on
  let numAnswers = 0;
  const perform = (actions) => {
    for (const action of actions) {
      if (action.kind === "cancel") pending = null;
      if (action.kind === "send") pending = { id: action.requestId, dueMs: bench.nowMs + latencyMs };
    }
  };
  const endMs = bench.nowMs + numKeys * pauseMs;
  for (let keyMs = bench.nowMs; bench.nowMs < endMs;) {
    const nextMs = Math.min(keyMs, session.wakeAtMs ?? Infinity, pending?.dueMs ?? Infinity);
    bench.nowMs = Math.max(bench.nowMs, nextMs);
    if (nextMs === keyMs) {
      keyMs += pauseMs;
      perform(session.edit(`${session.text}x`));
    } else if (nextMs === pending?.dueMs) {
      numAnswers += 1;
      const { id } = pending;
      perform(session.grown(id, { id: `drafts-${id}`, drafts: draftsOf(["no"]) }));
    } else {
      perform(session.advance());
    }
  }
  assert.ok(numAnswers >= 4, `${numAnswers} answers`);
});

test("a draft that was on the screen too briefly to be read gives way to a better one; later it stays", () => {
  const bench = new Bench();
  bench.type("a");
  bench.grow(1, [" red", " blue"]);
  bench.grow(1, [" blue sky x", " red sun x"], 100);
  assert.equal(bench.ghost, " blue sky");
  bench.grow(1, [" red sun x", " blue sky x"], 300);
  assert.equal(bench.ghost, " blue sky");
  bench.answer(1, [" red sun", " blue sky and"]);
  assert.equal(bench.ghost, " blue sky and");
});

test("only drafts of finished answers are reported", () => {
  const bench = new Bench();
  bench.type("a");
  bench.grow(1, [" red"]);
  bench.nowMs += 400;
  assert.deepEqual(bench.session.advance(), []);
  bench.answer(1, [" red green"]);
  bench.nowMs += 250;
  const [report] = bench.session.advance();
  assert.deepEqual({ ...report }, { kind: "report", completionId: "drafts-1", event: "shown", rank: 0 });
  assert.equal(bench.session.accept().find(({ kind }) => kind === "report").event, "accepted");
});

test("a request goes on while the server withholds all of its growing drafts", () => {
  const bench = new Bench();
  bench.type("a");
  assert.deepEqual(bench.grow(1, []), []);
  assert.equal(bench.session.isWaiting, true);
  bench.grow(1, [" red"]);
  assert.equal(bench.ghost, " red");
  assert.deepEqual(bench.grow(1, []), []); // its first word has become improbable
  assert.equal(bench.ghost, null);
  assert.equal(bench.session.isWaiting, true);
  bench.answer(1, [" blue"]);
  assert.equal(bench.ghost, " blue");
});

test("only the time until there are drafts, or surely none, counts as latency", () => {
  const [empty, full] = [new Bench(), new Bench()];
  for (const bench of [empty, full]) bench.type("a");
  empty.grow(1, [], 50);
  empty.answer(1, [], 350);
  full.grow(1, [" red"], 400);
  full.grow(1, [], 50);
  full.answer(1, [], 50);
  assert.equal(empty.session.latencyMs, full.session.latencyMs);
});

test("the text after the cursor is part of the request, and a change of it cancels", () => {
  const bench = new Bench({ maxSuffixChars: 9 });
  const [sent] = bench.session.edit("One ", " three.\nFour");
  assert.deepEqual([sent.prompt, sent.suffix, sent.isInvoked], ["One ", " three.\nF", false]);
  assert.equal(bench.session.after, " three.\nF");
  bench.grow(1, ["two"]);
  assert.equal(bench.ghost, "two");
  assert.deepEqual(kinds(bench.session.edit("One ", " 3.")), ["cancel", "send"]);
  assert.equal(bench.ghost, null);
  bench.answer(2, ["plus two is"]);
  assert.deepEqual(kinds(bench.session.edit("One p", " 3.")), []); // the draft fits
  assert.equal(bench.ghost, "lus two is");
  assert.deepEqual(kinds(bench.session.edit("One p", "")), ["send"]);
  assert.equal(bench.ghost, null);
});

test("the text after the cursor never ends with half a character", () => {
  const [sent] = new Bench({ maxSuffixChars: 3 }).session.edit("a", "😀😀");
  assert.equal(sent.suffix, "😀");
});

test("who asks gets drafts of their own, unless there are some", () => {
  const bench = new Bench();
  bench.type("a");
  const [cancel, send] = bench.session.ask();
  assert.deepEqual([cancel.kind, send.kind, send.isInvoked], ["cancel", "send", true]);
  assert.deepEqual(bench.session.ask(), []); // under way
  bench.answer(2, [" red"]);
  assert.deepEqual(bench.session.ask(), []);
  bench.session.dismiss();
  assert.deepEqual(bench.session.ask(), []); // they come back
  assert.equal(bench.ghost, " red");
  bench.session.edit("");
  assert.deepEqual(bench.session.ask(), []); // nothing to continue
});

test("a text for which the server had nothing to show can be asked for again", () => {
  const bench = new Bench();
  bench.type("a");
  bench.answer(1, []);
  assert.equal(bench.session.wakeAtMs, null);
  assert.deepEqual(kinds(bench.session.ask()), ["send"]);
  bench.answer(2, [" red"]);
  assert.equal(bench.ghost, " red");
});

test("growing drafts end at their line's end if finished ones do", () => {
  const bench = new Bench({ isSingleLine: true });
  bench.type("a");
  bench.grow(1, [" b c\nd e"]);
  assert.equal(bench.ghost, " b c");
});

test("a text that is too long for the model is sent without its beginning", () => {
  const details = {
    status: 400,
    kind: null,
    param: null,
    code: "context_length_exceeded",
    requestId: null,
    shouldRetry: null,
    retryAfterMs: null,
  };
  const bench = new Bench();
  bench.session.edit("0123456789");
  const [again] = bench.session.failed(1, new BadRequestError("too long", details));
  assert.equal("0123456789".endsWith(again.prompt), true);
  assert.ok(again.prompt.length <= 5 && again.prompt.length > 0);
  assert.equal(bench.session.error, null);
  assert.ok(new BadRequestError("", details) instanceof StatusError);
});

test("a prompt never begins with half a character", () => {
  const bench = new Bench({ maxPromptChars: 4 });
  const [sent] = bench.session.edit("😀😀😀😀");
  assert.equal(sent.prompt.isWellFormed?.() ?? true, true);
  assert.ok("😀😀😀😀".endsWith(sent.prompt));
  const [odd] = new Bench({ maxPromptChars: 4 }).session.edit("a😀😀😀😀");
  assert.ok(/^😀/u.test(odd.prompt));
});

test("dismissed suggestions come back", () => {
  const bench = new Bench();
  bench.type("a");
  bench.answer(1, [" red"]);
  bench.session.dismiss();
  assert.equal(bench.ghost, null);
  bench.session.reveal();
  assert.equal(bench.ghost, " red");
});

test("a restart forgets the answers and asks again", () => {
  const bench = new Bench();
  bench.type("a");
  bench.answer(1, [" red"]);
  assert.deepEqual(kinds(bench.session.restart()), ["send"]);
  assert.equal(bench.ghost, null);
  assert.deepEqual(kinds(bench.session.restart()), ["cancel", "send"]);
});

test("first words, also of scripts without spaces", () => {
  assert.equal(firstWord(" red green"), " red");
  assert.equal(firstWord("  "), "  ");
  assert.equal(firstWord("d, green"), "d,");
  assert.ok(firstWord("今日は天気がいい").length < 5);
});

test("a draft whose first word is typed has the probability of its next word", () => {
  const logprobs = [-0.1, -0.5, -0.2, -3];
  const draft = {
    index: 0,
    score: -1,
    text: "d green, blue",
    tokens: ["d", " gre", "en,", " blue"],
    token_logprobs: logprobs,
  };
  const close = (value, logprob) => assert.ok(Math.abs(value - Math.exp(logprob)) < 1e-12, `${value}`);
  close(nextProbability(draft, 0), -1);
  close(nextProbability(draft, 1), -0.5 - 0.2);
  close(nextProbability(draft, 2), -0.2); // within a token
  close(nextProbability(draft, 8), -3);
  assert.equal(nextProbability({ index: 0, score: -1, text: "d green" }, 1), null);
  const bench = new Bench();
  bench.session.edit("re");
  bench.session.answered(1, { id: "drafts-1", drafts: [draft] });
  bench.type("d");
  close(bench.session.display.ghost.probability, -0.5 - 0.2);
});

test("a score is the logarithm of a probability", () => {
  assert.equal(probability({ score: 0 }), 1);
  assert.ok(Math.abs(probability({ score: Math.log(0.25) }) - 0.25) < 1e-12);
});

test("events may be split anywhere, and lines may end in three ways", () => {
  const bytes = new TextEncoder().encode(
    '\ufeffdata: {"a":"ä\u2028"}\r\n\r\n: keep-alive\n\ndata: 1\rdata:2\r\rdata: lost',
  );
  for (const size of [1, 2, 3, 7, bytes.length]) {
    const parser = new EventParser();
    const events = [];
    for (let at = 0; at < bytes.length; at += size) events.push(...parser.feed(bytes.subarray(at, at + size)));
    assert.deepEqual(events, ['{"a":"ä\u2028"}', "1\n2"], `chunks of ${size}`);
  }
  assert.throws(() => new EventParser().feed(new Uint8Array([0xff, 0x0a])), /not UTF-8/);
});

test("a growing correction takes the place of the mistyped word, and is gone with the next key", () => {
  const bench = new Bench({ corrections: true });
  const [send] = bench.session.edit("teh");
  assert.equal(send.corrects, true);
  const replaces = { characters: 3, text: "teh" };
  const drafts = draftsOf(["the red car", "the green car"], replaces);
  bench.session.grown(send.requestId, { id: "a", step: 1, stable_text: "", drafts });
  assert.equal(bench.session.display.ghost.replaces, "teh");
  bench.session.acceptPart(firstWord);
  assert.equal(bench.session.text, "the");
  assert.equal(bench.session.display.ghost.replaces, "");

  const other = new Bench({ corrections: true });
  const [asked] = other.session.edit("teh");
  other.session.grown(asked.requestId, { id: "a", step: 1, stable_text: "", drafts });
  const actions = other.type(" ");
  assert.equal(other.ghost, null);
  assert.deepEqual(kinds(actions).slice(0, 1), ["cancel"], "no growing draft agrees with the text any more");
});
