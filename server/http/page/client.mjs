// What the page asks of its server. Addresses are relative, so that the page works below a proxy's path, too.

import { eventsOf } from "./events.mjs";
import { toJson } from "./request.mjs";
import { Refused, refusalOf } from "./words.mjs";

let key = "";

/** The API key of all that follows; "" for none. */
export function useKey(text) {
  key = text;
}

export const hasKey = () => key !== "";

async function ask(path, options = {}) {
  let answer;
  const headers = { ...options.headers, ...(key ? { "X-API-Key": key } : {}) };
  try {
    answer = await fetch(path, { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refused("The server does not answer. Is it still running?");
  }
  if (answer.ok) return answer;
  const body = await answer.json().catch(() => null);
  throw refusalOf(answer.status, body?.error, answer.headers.get("Retry-After"), key !== "");
}

const post = (body, accept, signal) => ask("v1/generate", {
  method: "POST", headers: { "Content-Type": "application/json", Accept: accept }, body: toJson(body), signal,
});

/** The models that are served. */
export async function listModels() {
  return (await (await ask("v1/models")).json()).data;
}

/** Those that make images of noise alone, which the form can ask for: of the others each needs a picture to enlarge. */
export function offered(models) {
  const found = models.filter((each) => each.conditions.every((condition) => condition.default !== null));
  return found.length ? found : models;
}

/** The first model that makes images of `model` larger; null: none is served. */
export function enlargerOf(models, model) {
  const image = [model.channels, model.resolution, model.resolution].join();
  return models.find((each) => each.conditions.some(({ name, shape }) => name === "low" && shape.join() === image)) ?? null;
}

/** The page of /metrics, as text. */
export async function readMetrics() {
  return (await ask("metrics")).text();
}

/** A file of the server. */
export async function readBytes(path) {
  return new Uint8Array(await (await ask(path)).arrayBuffer());
}

/** The base64 of an image of a JSON answer or an event. */
export const encodedIn = (entry) => entry.b64_json;

/** The JSON answer, once all images are made. */
export async function generate(body, signal) {
  return (await post(body, "application/json", signal)).json();
}

/**
 * The JSON answer; while the images are made, onEvent gets { image, call, calls, ... } of each network call.
 * Aborting the signal ends the work on the server, too.
 */
export async function generateStream(body, signal, onEvent) {
  const answer = await post({ ...body, stream: true }, "text/event-stream", signal);
  try {
    for await (const { name, data } of eventsOf(piecesOf(answer.body))) {
      if (name === "images") return data;
      if (name === "error") throw refusalOf(503, data.error, null, key !== "");
      onEvent(data);
    }
  } catch (error) {
    if (error instanceof Refused || error.name === "AbortError") throw error;
    throw new Refused("The connection to the server was lost before all images had come.");
  }
  throw new Refused("The server ended the answer before all images had come.");
}

// Safari's streams are no async iterables.
async function* piecesOf(stream) {
  const reader = stream.getReader();
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    yield value;
  }
}
