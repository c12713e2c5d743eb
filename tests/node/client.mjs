// Requests to a running server at SERVER_URL, sent with the TypeScript client, as the page loads it.
// Each line on standard output is {"name", "result"}; the Python test checks the results.

const built = new URL(process.argv[2]);
const { LiveTypingSession, Superdraft } = await import(built);
const url = process.env.SERVER_URL;
const client = new Superdraft(`${url}/v1/`, { maxRetries: 0 });
const hello = { max_tokens: 3 };

async function failure(work) {
  try {
    await work();
  } catch (error) {
    const { name, status, code, param, kind, message, requestId } = error;
    return { name, status, code, param, kind, message, hasRequestId: Boolean(requestId) };
  }
  return null;
}

/** A client whose requests get these responses, and the number of requests. */
function faked(responses, options = {}) {
  const sent = [];
  const respond = async (...request) => {
    sent.push(request);
    const next = responses[Math.min(sent.length, responses.length) - 1];
    if (next === "never")
      return new Promise((_, reject) =>
        request[1].signal.addEventListener("abort", () => reject(request[1].signal.reason)),
      );
    return next();
  };
  return { sent, client: new Superdraft("fake:", { ...options, fetch: respond }) };
}

const busy = (headers) => () =>
  new Response(JSON.stringify({ error: { message: "busy", type: "rate_limit_error", code: "overloaded" } }), {
    status: 429,
    headers,
  });
const limits = () => new Response(JSON.stringify({ object: "limits", model: "tiny" }));
const events =
  (...data) =>
  () =>
    new Response(data.map((event) => `data: ${event}\n\n`).join(""), {
      headers: { "content-type": "text/event-stream" },
    });

async function retried(responses, options) {
  const { client: faulty, sent } = faked(responses, options);
  return { error: await failure(() => faulty.limits()), sent: sent.length };
}

const until = async (isTrue) => {
  while (!isTrue()) await new Promise((resolve) => setTimeout(resolve, 10));
};

const tasks = {
  baseUrl: () => client.baseUrl,
  complete: () => client.complete("hi", hello),
  stream: async () => {
    const stream = await client.stream("slow", { max_tokens: 4 });
    const snapshots = [];
    for await (const snapshot of stream) snapshots.push(snapshot);
    return { snapshots, answer: await stream.result() };
  },
  resultAlone: async () => (await client.stream("hi", hello)).result(),
  models: () => client.models(),
  limits: () => client.limits(),
  ngramModels: () => client.ngramModels(),
  feedback: async () => {
    const { id } = await client.complete("hi", hello);
    return [
      await client.feedback(id, "shown", 1),
      await client.feedback(id, "accepted", 1, 12.5),
      await client.feedback(id, "shown", 1),
    ];
  },
  badRequest: () => failure(() => client.complete("hi", { num_drafts: 0 })),
  badStream: () => failure(() => client.stream("hi", { num_drafts: 0 })),
  notFound: () => failure(() => client.feedback("none", "shown")),
  brokenStream: () => failure(async () => (await client.stream("fail", hello)).result()),
  redirected: () =>
    failure(() => new Superdraft(process.env.REDIRECTING_URL, { apiKey: "k", maxRetries: 0 }).complete("hi", hello)),
  unreachable: () => failure(() => new Superdraft("http://127.0.0.1:9", { maxRetries: 0 }).limits()),
  timeout: () => failure(() => faked(["never"], { timeoutMs: 50 }).client.limits()),
  otherServer: () => failure(() => faked([() => new Response("<html>")]).client.limits()),
  otherStream: () => failure(() => faked([() => new Response("{}")]).client.stream("hi")),
  endedStream: () =>
    failure(async () =>
      (await faked([events('{"object":"drafts.snapshot","id":"d","drafts":[]}')]).client.stream("hi")).result(),
    ),
  garbledStream: () => failure(async () => (await faked([events('{"object":"drafts"}')]).client.stream("hi")).result()),
  retries: () => retried([busy({ "retry-after-ms": "1" }), busy({}), limits]),
  toldNotTo: () => retried([busy({ "x-should-retry": "false" }), limits]),
  toldTooLong: () => retried([busy({ "retry-after": "60" }), limits]),
  aborted: async () => {
    const error = await failure(() =>
      client.complete("abort", { max_tokens: 50 }, { signal: AbortSignal.timeout(300) }),
    );
    return error.name;
  },
  left: async () => {
    for await (const snapshot of await client.stream("leave", { max_tokens: 50 })) return snapshot.step;
  },
  typing: async () => {
    const shown = [];
    const typing = new LiveTypingSession(client, {
      onChange: () => shown.push(typing?.display.ghost?.text ?? null),
      drafts: { max_tokens: 3 },
      maxDelayMs: 0,
    });
    typing.edit("type");
    await until(() => !typing.isWaiting);
    const first = typing.display.ghost.text;
    typing.edit("type re");
    const rest = typing.display.ghost.text;
    typing.acceptWord();
    typing.accept();
    const accepted = typing.text;
    await until(() => !typing.isWaiting);
    await typing.close();
    return { first, rest, accepted, grew: new Set(shown).size > 2 };
  },
  typingFields: async () => {
    const nothing = { object: "drafts", id: "drafts-1", drafts: [], usage: {}, timings: {}, warnings: [] };
    const { sent, client: silent } = faked([() => new Response(JSON.stringify(nothing))]);
    const typing = new LiveTypingSession(silent, {
      drafts: { min_probability_shown: 0.5 },
      maxDelayMs: 0,
      streams: false,
    });
    typing.edit("type", " here");
    await until(() => !typing.isWaiting);
    typing.ask();
    await until(() => !typing.isWaiting);
    await typing.close();
    return sent.map(([, { body }]) => JSON.parse(body));
  },
};

for (const [name, task] of Object.entries(tasks)) {
  console.log(JSON.stringify({ name, result: await task() }));
}
