// The form of index.html. ?engine=URL&runtime=URL say where the engine folder and onnxruntime-web's `dist` are.

import { load } from "./runtime.js";
import { sample, toRgba } from "./student.js";

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
