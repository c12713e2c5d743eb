// The settings' fields: what they offer comes from the server, and what is in them goes into requests.

const NONE = "\0none"; // no model's name

const byId = (id) => document.getElementById(id);

/** The fields of a request for drafts that the user has a say in. */
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
  return chosen;
}

/** Offer what the server has: the answers of `/v1/limits` and `/v1/ngram_models`. */
export function offer(limits, models) {
  limit("num-drafts", limits.max_num_drafts);
  limit("max-tokens", limits.max_tokens);
  const picker = byId("ngram-model");
  const before = picker.value;
  const fitting = models.data.filter((model) => model.fits_tokenizer).map((model) => model.name);
  const choices = [
    ["", "the server's choice"],
    ...fitting.map((name) => [name, name]),
    [NONE, "none"],
  ];
  picker.replaceChildren(...choices.map(([value, label]) => new Option(label, value)));
  picker.value = choices.some(([value]) => value === before) ? before : "";
}

export function onChange(call) {
  for (const field of document.querySelectorAll(".settings input, .settings select")) {
    field.addEventListener("change", () => {
      if (field.type === "number") field.valueAsNumber = numberOf(field.id); // what is shown is what is asked for
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
