// Settings panel: limits and choices come from the server, and the values go into requests.

const NONE = "\0none"; // cannot be the name of a model

const byId = (id) => document.getElementById(id);

let maxBranches = 1;

/** The request fields that the user can set. */
export function fields() {
  const chosen = {
    num_drafts: numberOf("num-drafts"),
    max_tokens: numberOf("max-tokens"),
    trim: byId("trim").value,
    token_healing: byId("token-healing").checked,
    single_line: byId("single-line").checked,
  };
  const ngramModel = byId("ngram-model").value;
  if (ngramModel !== "") chosen.ngram_model = ngramModel === NONE ? null : ngramModel;
  const rows = byId("rows-per-request").value;
  if (rows !== "") {
    chosen.selection = "distinct"; // the paper's selection has one row, always
    chosen.max_branches = rows === "one" ? 1 : Math.min(chosen.num_drafts, maxBranches);
  }
  return chosen;
}

/** Apply the server's limits and n-gram models: the answers of `/v1/limits` and `/v1/ngram_models`. */
export function offer(limits, models) {
  maxBranches = limits.max_branches;
  limit("num-drafts", limits.max_num_drafts);
  limit("max-tokens", limits.max_tokens);
  const picker = byId("ngram-model");
  const before = picker.value;
  const fitting = models.filter((model) => model.fits_tokenizer).map((model) => model.name);
  const choices = [["", "server default"], ...fitting.map((name) => [name, name]), [NONE, "none"]];
  picker.replaceChildren(...choices.map(([value, label]) => new Option(label, value)));
  picker.value = choices.some(([value]) => value === before) ? before : "";
}

export function onChange(call) {
  for (const field of document.querySelectorAll(".settings input, .settings select")) {
    field.addEventListener("change", () => {
      if (field.type === "number") field.valueAsNumber = numberOf(field.id); // show the value that is sent
      call();
    });
  }
}

function limit(id, max) {
  byId(id).max = max;
  byId(id).valueAsNumber = numberOf(id);
}

function numberOf(id) {
  const { valueAsNumber, min, max, defaultValue } = byId(id);
  const value = Number.isNaN(valueAsNumber) ? Number(defaultValue) : Math.round(valueAsNumber);
  return Math.min(Math.max(value, Number(min)), Number(max || value));
}
