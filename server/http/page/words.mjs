// Numbers and errors in the words of the page's labels.

/** Something the user can mend or wait for, in a sentence. field: the id of the field it is about. */
export class Refused extends Error {
  constructor(message, field = null) {
    super(message);
    this.field = field;
  }
}

// The API's names of fields -> the page's label and the id of the field.
const FIELDS = {
  n: ["Images", "count"], steps: ["Steps", "steps"], seed: ["Seed", "seed"], seed_to: ["Second seed", "seed-to"],
  label: ["Class", "label"], model: ["Model", "model"], image: ["The picture", null], mask: ["The mask", null],
  strength: ["Strength", "strength"], guidance: ["Guidance", "guidance"],
};

export const plural = (n, word) => `${n} ${word}${n === 1 ? "" : "s"}`;

/** Milliseconds for people. */
export const time = (ms) => (ms < 10 ? `${ms.toFixed(1)} ms` : ms < 1000 ? `${Math.round(ms)} ms` : `${(ms / 1000).toFixed(1)} s`);

/** The Refused of an answer that is none. error: its "error" object; retryAfter: its header, in seconds. */
export function refusalOf(status, error, retryAfter, hadKey) {
  if (status === 401) {
    return new Refused(hadKey ? "The server does not know this API key." : "This server asks for an API key.", "key");
  }
  const again = retryAfter ? ` Try again in ${plural(Number(retryAfter), "second")}.` : "";
  if (status === 429) return new Refused(`The server is full.${again || " Try again soon."}`);
  if (status === 503) return new Refused(`The server cannot answer now: ${ended(error?.message ?? "it did not say why")}${again}`);
  if (!error?.message) return new Refused(`The server answered ${status} and did not say why.`);
  const [label, field] = FIELDS[error.param] ?? [null, null];
  let message = error.message;
  if (label && message.startsWith(`${error.param} `)) message = label + message.slice(error.param.length);
  return new Refused(ended(message[0].toUpperCase() + message.slice(1)), field);
}

const ended = (text) => (/[.!?]$/.test(text) ? text : `${text}.`);
