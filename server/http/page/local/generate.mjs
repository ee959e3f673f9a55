// Images made in this page, for what the server would answer to the same request. Loaded when it is first asked for.

import { readBytes } from "../client.mjs";
import { encode } from "../picture.mjs";
import { Refused } from "../words.mjs";
import { NOISE_VERSION, randomLabel } from "./philox.mjs";
import { start } from "./runtime.mjs";
import { sample, toRgba } from "./student.mjs";

const RUNTIME = new URL("../runtime/", import.meta.url).href;
const running = new Map();  // model's id -> promise of { network, provider }

/**
 * As `generateStream` of client.mjs, and { where } of the answer says what ran the network. body: without an image or a
 * second seed. model: an entry of the list of models, with `browser`. tell: says in words what takes long.
 */
export async function generateHere(model, body, signal, onEvent, tell) {
  const { network, provider } = await loaded(model, tell);
  const facts = { ...model, sigma_data: model.browser.sigma_data };
  const { n = 1, steps } = body, data = [];
  let engine = 0;
  for (let image = 0; image < n; image++) {
    const seed = body.seed + BigInt(image), label = labelOf(model, body.label, seed);
    const entry = (values) => ({
      image, label, calls: steps, b64_json: encode(toRgba(values, model.channels, model.resolution), model.resolution),
    });
    const timed = async (inputs) => {
      await pause();
      signal.throwIfAborted();
      const began = performance.now(), output = await network(inputs);
      engine += performance.now() - began;
      return output;
    };
    const values = await sample(facts, timed, seed, label, steps, (denoised, call) => onEvent({ ...entry(denoised), call }));
    data.push(entry(values));
  }
  return { data, timings_ms: { engine }, where: `on this computer (${provider})` };
}

// Before each network call, so that the page is drawn and Cancel is heard.
const pause = () => new Promise((resolve) => setTimeout(resolve));

/** given: the class's name or number, or undefined for a random one. null: the model has no classes. */
function labelOf(model, given, seed) {
  if (model.classes === 0) return null;
  if (given === undefined) return randomLabel(seed, model.classes);
  return typeof given === "number" ? given : model.class_names.indexOf(given);
}

function loaded(model, tell) {
  if (!running.has(model.id)) {
    tell(`Loading the network, ${(model.browser.bytes / 1e6).toFixed(1)} MB, and what runs it…`);
    running.set(model.id, load(model).catch((error) => {
      running.delete(model.id);  // so that the next press tries again
      throw error;
    }));
  }
  return running.get(model.id);
}

async function load(model) {
  if (model.noise_version !== NOISE_VERSION) {
    throw new Refused(`This page makes noise of version ${NOISE_VERSION}, and ${model.id} needs version ${model.noise_version}.`, "here");
  }
  const bytes = await readBytes(model.browser.network);
  try {
    return await start(RUNTIME, bytes, model);
  } catch (error) {
    throw new Refused(`This browser cannot run the network (${error.message}). Let the server make the images.`, "here");
  }
}
