// The form: what the model allows, what was chosen, and what the address says.

import { VIEWS, fromAddress, toAddress } from "./address.mjs";
import { $, element } from "./dom.mjs";
import { LAST_SEED, drawSeed, parseSeed } from "./seeds.mjs";
import { Refused } from "./words.mjs";

export const STRIP_STEPS = [1, 2, 4, 8];

export const viewNow = () => VIEWS.find((view) => $(`view-${view}`).checked);

/** What a model says of the guidance weight that it takes: { low, high, default }; undefined: it takes none. */
export const guidanceOf = (model) => model.conditions.find((each) => each.name === "guidance");

/** Show the fields of the view that is chosen. */
export function showView() {
  const view = viewNow();
  for (const field of document.querySelectorAll("[data-views]")) field.hidden = !field.dataset.views.split(" ").includes(view);
  $("seed-label").textContent = { map: "World seed", between: "First seed" }[view] ?? "Seed";
  $("count-label").textContent = view === "between" ? "Frames" : "Images";
  $("go").textContent = view === "map" ? "Show the world" : "Generate";
}

/** Offer what a model has. */
export function describe(model) {
  const size = `${model.resolution}×${model.resolution} ${model.channels === 1 ? "gray" : "colour"}`;
  $("about").textContent = `${model.id}: ${size} images in one to ${Math.max(...model.steps)} network calls. ${model.backend}, ${model.mode} mode.`;
  const steps = $("steps"), chosen = Number(steps.value);
  steps.min = Math.min(...model.steps);
  steps.max = Math.max(...model.steps);
  $("steps-served").replaceChildren(...model.steps.map((each) => new Option(String(each), each)));
  $("ticks").replaceChildren(...model.steps.map((each) => element("span", {}, String(each))));
  steps.value = chosen;
  showSteps();
  $("count").max = model.max_images;
  $("class-field").hidden = model.classes === 0;
  const label = $("label").value;
  $("label").replaceChildren(new Option("any", ""));
  for (let i = 0; i < model.classes; i++) $("label").append(new Option(model.class_names[i] ?? `class ${i}`, model.class_names[i] ?? i));
  $("label").value = [...$("label").options].some((option) => option.value === label) ? label : "";
  describeGuidance(guidanceOf(model));
  $("here-field").hidden = !model.browser;
  for (const view of document.querySelectorAll("[data-edits]")) view.hidden = !model.edits;
}

/** A weight that the next model takes, too, stays. */
function describeGuidance(weight) {
  $("guidance-field").hidden = weight === undefined;
  if (weight === undefined) return;
  const chosen = $("guidance").value;
  $("guidance").min = weight.low;  // the browser keeps the value within the range
  $("guidance").max = weight.high;
  $("guidance").value = chosen;
  showSteps();
}

/** The numbers beside the sliders. */
export function showSteps() {
  $("steps-now").textContent = $("steps").value;
  $("guidance-now").textContent = $("guidance").value;
}

/** New seeds where the form says so. */
export function refreshSeeds() {
  const keeps = viewNow() === "map" || !$("fresh").checked;  // a world is kept until another is asked for
  if (!keeps || $("seed").value.trim() === "") $("seed").value = drawSeed();
  if (viewNow() === "between" && ($("fresh").checked || $("seed-to").value.trim() === "")) $("seed-to").value = drawSeed();
}

/** Use a seed that was made already, and keep it. */
export function reuseSeed(seed) {
  $("seed").value = seed;
  $("fresh").checked = false;
}

/** The values of the form, those of a view's fields. Raises Refused, in the words of its labels. */
export function valuesOf(model, view = viewNow()) {
  const count = view === "images" || view === "between" ? countOf(model, view) : 1;
  const seed = seedOf("seed", $("seed-label").textContent);
  if (view === "images" && seed + BigInt(count) - 1n > LAST_SEED) {
    throw new Refused(`With ${count} images the seed is at most ${LAST_SEED - BigInt(count) + 1n}: each image has the next one.`, "seed");
  }
  const steps = Number($("steps").value);
  if (!model.steps.includes(steps)) throw new Refused(`This model takes ${model.steps.join(", ")} steps, not ${steps}.`, "steps");
  const weight = guidanceOf(model), chosen = Math.min(Number($("guidance").value), weight?.high ?? 0);
  return {
    view, model: model.id, steps, count, seed,
    label: model.classes ? $("label").value : "",
    guidance: weight === undefined || chosen === weight.default ? undefined : chosen,
    seedTo: view === "between" ? seedOf("seed-to", "Second seed") : undefined,
    fresh: $("fresh").checked,
  };
}

function countOf(model, view) {
  const name = view === "between" ? "Frames" : "Images", typed = $("count").value.trim(), count = Number(typed);
  const least = view === "between" ? 2 : 1;
  if (!/^\d+$/.test(typed) || count < least || count > model.max_images) {
    const given = typed === "" ? "The field is empty." : `Not ${typed}.`;
    throw new Refused(`${name}: a whole number from ${least} to ${model.max_images}. ${given}`, "count");
  }
  return count;
}

function seedOf(id, name) {
  const typed = $(id).value.trim(), seed = parseSeed(typed);
  if (seed === null) throw new Refused(`${name}: a whole number from 0 to ${LAST_SEED}. Not “${typed.slice(0, 40)}”.`, id);
  return seed;
}

/** The request of some values; label: a class's name or, where classes have none, its number. */
export function bodyOf({ model, steps, label, guidance, seed, seedTo, count }, named) {
  const given = label === "" ? undefined : named ? label : Number(label);
  return { model, steps, n: count > 1 ? count : undefined, seed, seed_to: seedTo, label: given, guidance };
}

/** Fill the form from the page's address; returns the model, class and guidance that it wants, the map's place, and whether it has a seed. */
export function readAddress() {
  const given = fromAddress(location.search);
  if (given.view) $(`view-${given.view}`).checked = true;
  if (given.steps !== undefined) $("steps").value = given.steps;
  if (given.guidance !== undefined) $("guidance").value = given.guidance;
  if (given.count !== undefined) $("count").value = given.count;
  if (given.seed !== undefined) $("seed").value = given.seed;
  if (given.seedTo !== undefined) $("seed-to").value = given.seedTo;
  if (given.fresh === false) $("fresh").checked = false;
  if (given.label !== undefined) {
    $("label").append(new Option(given.label));  // `describe` keeps it if the model has it
    $("label").value = given.label;
  }
  return { model: given.model, label: given.label, guidance: given.guidance, place: { x: given.x ?? 0, y: given.y ?? 0 }, seeded: given.seed !== undefined };
}

/** Put values into the address, without a step in the browser's history. */
export function writeAddress(values) {
  history.replaceState(null, "", toAddress(values));
}
