// The page's present request as code to copy.

/** The request for curl, in a POSIX shell. A key is read from the environment, so that it is not copied. */
export function asCurl(baseUrl, body, hasKey) {
  const header = hasKey ? ' -H "Authorization: Bearer $SUPERDRAFT_API_KEY"' : "";
  return `curl -s ${shellQuoted(`${baseUrl}/v1/drafts`)}${header} -d ${shellQuoted(JSON.stringify(body))}\n`;
}

/** The request for the Python client. */
export function asPython(baseUrl, { prompt, ...options }, hasKey) {
  const key = hasKey ? ', api_key=os.environ["SUPERDRAFT_API_KEY"]' : "";
  const named = Object.entries(options).map(([name, value]) => `        ${name}=${pythonLiteral(value)},\n`);
  return (
    `${hasKey ? "import os\n\n" : ""}from superdraft.client import Superdraft\n\n` +
    `with Superdraft(${pythonLiteral(baseUrl)}${key}) as client:\n` +
    `    completion = client.complete(\n        ${pythonLiteral(prompt)},\n${named.join("")}    )\n` +
    `    for draft in completion.drafts:\n        print(draft.score, draft.text)\n`
  );
}

const shellQuoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;

const WORDS = new Map([
  [true, "True"],
  [false, "False"],
  [null, "None"],
]);

/** A JSON string is a Python string, too. */
const pythonLiteral = (value) => WORDS.get(value) ?? JSON.stringify(value);

/** Copy a text to the clipboard. @returns {Promise<boolean>} whether that worked. */
export async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    return copyFromSelection(text); // pages without a secure origin have no clipboard
  }
}

function copyFromSelection(text) {
  const focused = document.activeElement;
  const area = document.createElement("textarea");
  area.value = text;
  document.body.append(area);
  area.select();
  const isCopied = document.execCommand("copy");
  area.remove();
  focused?.focus();
  return isCopied;
}
