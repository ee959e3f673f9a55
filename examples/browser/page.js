// The form of index.html. ?engine=URL&runtime=URL say where the engine folder and onnxruntime-web's `dist` are.

import { start } from "../../server/http/page/local/runtime.mjs";
import { sample, toRgba } from "../../server/http/page/local/student.mjs";

const query = new URLSearchParams(location.search);
const url = (name, otherwise) => new URL(query.get(name) ?? otherwise, location.href).href.replace(/\/$/, "");
const form = document.querySelector("form");
const status = document.querySelector("[role=status]");
const canvas = document.querySelector("canvas");

function fill(select, values, chosen) {
  for (const [value, text] of values) select.add(new Option(text, value, false, value === chosen));
}

async function generate({ facts, network, provider }) {
  const began = performance.now();
  const seed = BigInt(form.seed.value);
  const image = await sample(facts, network, seed, Number(form.label.value), Number(form.steps.value));
  const rgba = toRgba(image, facts.channels, facts.resolution);
  canvas.width = canvas.height = facts.resolution;
  canvas.getContext("2d").putImageData(new ImageData(rgba, facts.resolution), 0, 0);
  status.textContent = `${Math.round(performance.now() - began)} ms with ${provider}`;
}

// The facts of engine.json, and the network. engine: URL of an engine folder of fewstep.
async function load(runtime, engine) {
  const file = async (name) => {
    const answer = await fetch(`${engine}/${name}`);
    if (!answer.ok) throw new Error(`${engine}/${name}: HTTP ${answer.status}; is it an engine folder?`);
    return answer;
  };
  const facts = await (await file("engine.json")).json();
  if (facts.noise_version !== 1) throw new Error(`noise_version is ${facts.noise_version}; this page knows 1`);
  if (facts.extra) throw new Error("the network takes a latent beside the image, which this page does not make");
  const bytes = new Uint8Array(await (await file(facts.network)).arrayBuffer());
  return { facts, ...(await start(`${runtime}/`, bytes, facts)) };
}

try {
  const model = await load(url("runtime", "runtime"), url("engine", "engine"));
  const names = model.facts.class_names.length ? model.facts.class_names : ["any"];
  fill(form.label, names.map((name, at) => [String(at), name]));
  const counts = Object.keys(model.facts.levels);
  fill(form.steps, counts.map((steps) => [steps, steps]), counts.includes("4") ? "4" : counts[0]);
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    generate(model).catch((error) => (status.textContent = error.message));
  });
  form.querySelector("button").disabled = false;
  status.textContent = `${model.facts.name}, ready (${model.provider})`;
} catch (error) {
  status.textContent = `The network did not load: ${error.message}`;
}
