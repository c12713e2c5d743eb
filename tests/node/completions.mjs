// Requests to a running server at SERVER_URL, sent with OpenAI's JavaScript package.
// Each line on standard output is {"name", "result"}; the Python test checks the results.

import OpenAI from "openai";

const baseURL = `${process.env.SERVER_URL}/v1`;
const client = new OpenAI({ apiKey: "none", baseURL, maxRetries: 0 });
const hello = { model: "tiny", prompt: "hi", max_tokens: 3 };

async function collect(stream) {
  const chunks = [];
  for await (const chunk of stream) chunks.push(chunk);
  return chunks;
}

async function failure(work) {
  try {
    await work();
  } catch (error) {
    const { status, code, param, type, message } = error;
    return { kind: error.constructor.name, status, code, param, type, message };
  }
  return null;
}

async function countedRetries(body) {
  let sent = 0;
  const counting = (...request) => {
    sent += 1;
    return fetch(...request);
  };
  const patient = new OpenAI({ apiKey: "none", baseURL, maxRetries: 2, fetch: counting });
  return { error: await failure(() => patient.completions.create(body)), sent };
}

const tasks = {
  completion: () =>
    client.completions.create({ ...hello, n: 3, logprobs: 2, strategy: "superposed", top_k: 5 }),
  aliased: () => client.completions.create({ ...hello, model: "superdraft:sample", n: 2, seed: 1 }),
  stream: async () =>
    collect(
      await client.completions.create({
        ...hello,
        n: 2,
        stream: true,
        stream_options: { include_usage: true },
      }),
    ),
  models: async () => collect(await client.models.list()),
  model: () => client.models.retrieve("superdraft:greedy"),
  badRequest: () => failure(() => client.completions.create({ ...hello, n: 0 })),
  badStream: () => failure(() => client.completions.create({ ...hello, n: 0, stream: true })),
  notFound: () => failure(() => client.completions.create({ ...hello, model: "gpt-4" })),
  retries: () => countedRetries({ ...hello, n: 0 }),
  brokenStream: () =>
    failure(async () => collect(await client.completions.create({ ...hello, prompt: "fail", n: 2, stream: true }))),
  closed: async () => {
    const stream = await client.completions.create({ ...hello, prompt: "close", max_tokens: 50, n: 2, stream: true });
    for await (const chunk of stream) return chunk; // leaving the loop aborts the request
  },
  aborted: () =>
    failure(() =>
      client.completions.create(
        { ...hello, prompt: "abort", max_tokens: 50 },
        { signal: AbortSignal.timeout(1000) },
      ),
    ),
};

for (const [name, task] of Object.entries(tasks)) {
  console.log(JSON.stringify({ name, result: await task() }));
}
