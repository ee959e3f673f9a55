// The page: what each button starts, and what is told of it.

import { encodedIn, enlargerOf, generate, generateStream, listModels, offered, useKey } from "./client.mjs";
import { copyPanel } from "./copy.mjs";
import { $, element } from "./dom.mjs";
import {
  STRIP_STEPS, bodyOf, describe, guidanceOf, readAddress, refreshSeeds, reuseSeed, showSteps, showView, valuesOf, viewNow,
  writeAddress,
} from "./form.mjs";
import { Batch } from "./history.mjs";
import { prepareMap, showMap, stopMap } from "./map.mjs";
import { startMeter } from "./meter.mjs";
import { adopt, asked, closeEditor, edit, isEditing, loadMask, measure, prepareEditor, redraw } from "./painter.mjs";
import { encode, fitted } from "./picture.mjs";
import { player } from "./player.mjs";
import { drawSeed } from "./seeds.mjs";
import { summary } from "./spread.mjs";
import { enlarge, prepareViewer } from "./viewer.mjs";
import { Refused, plural, time } from "./words.mjs";

const ANSWERS = 16;
const ROUGHLY = "Known pixels are put back after every call and have no spread. What is around them follows them less than in the exact posterior.";
const ONE_CALL = "With one step the answers see the known pixels through the noise of the first level alone. More steps follow them better.";

let models = [], model = null;
let running = null;  // AbortController of what is being made
let world = null;  // the form's values when the map was shown
let place = { x: 0, y: 0 };  // of the map's window
let writing;  // timer

// What happens, told in words.

function complain(error) {
  $("status").textContent = "";
  $("error").textContent = error instanceof Refused ? error.message : `The page made a mistake: ${error.message}`;
  $("error").hidden = false;
  if (error.field === "key") $("key-field").hidden = false;
  const field = error.field && $(error.field);
  if (!field) return;
  field.setAttribute("aria-invalid", "true");
  field.setAttribute("aria-errormessage", "error");
  field.focus();
}

function forgive() {
  $("error").hidden = true;
  for (const field of document.querySelectorAll("[aria-invalid]")) {
    field.removeAttribute("aria-invalid");
    field.removeAttribute("aria-errormessage");
  }
}

function tell(text, done = 0, all = 0) {
  $("status").textContent = text;
  $("busy").hidden = all === 0;
  $("busy").max = all || 1;
  $("busy").value = done;
}

/** Run what makes images; whether it came to its end. One at a time: a second press of a button ends the first. */
async function busy(work) {
  running?.abort();
  const own = new AbortController();
  running = own;
  forgive();
  $("cancel").hidden = false;
  tell("Asking the server…");
  try {
    await work(own.signal);
    return true;
  } catch (error) {
    if (running === own && error.name !== "AbortError") complain(error);
    return false;
  } finally {
    if (running === own) {
      running = null;
      $("busy").hidden = true;
      $("cancel").hidden = true;
    }
  }
}

function cancel() {
  running?.abort();
  if (!stopMap() && running === null) return;
  tell("Cancelled. What was finished stays.");
  $("busy").hidden = $("cancel").hidden = true;
  if (document.activeElement === document.body || document.activeElement === $("cancel")) $("go").focus();
}

// Images.

const actionsFor = (from, values) => ({
  zoom: (image, all) => enlarge(image, all, actionsFor(from, values)),
  edit: from.edits ? (image) => {
    if (from !== model) pick(from);
    edit(image, from, document.activeElement).catch(complain);
  } : null,
  reuse: (image) => {
    reuseSeed(image.seed);
    $("seed").focus();
    tell(`Seed ${image.seed} is in the form and stays there.`);
  },
  settings: () => restore(values),
});

/** Put a batch's values back into the form. */
function restore(values) {
  $(`view-${values.view}`).checked = true;
  if (values.model !== model.id) pick(models.find((each) => each.id === values.model));
  $("steps").value = values.steps;
  $("label").value = values.label;
  $("guidance").value = values.guidance ?? guidanceOf(model)?.default ?? 1;
  $("count").value = values.count;
  if (values.seedTo !== undefined) $("seed-to").value = values.seedTo;
  reuseSeed(values.seed);
  showSteps();
  showView();
  $("form").scrollIntoView({ block: "nearest" });
  $("go").focus();
}

/** An image of an answer or an event. The seed is counted here: an answer's may be larger than JSON.parse reads exactly. */
const imageOf = (entry, body, index, extra) => ({
  model: body.model, steps: body.steps, encoded: encodedIn(entry), label: entry.label,
  className: models.find((each) => each.id === body.model).class_names[entry.label] ?? null,
  seed: body.seed_to === undefined ? body.seed + BigInt(index) : body.seed, body, ...extra,
});

/** Ask for a batch and fill its tiles as the images come. extra(i): what is said of an image beside what the server says. */
async function fill(batch, body, signal, extra = () => ({})) {
  const all = batch.tiles.length, began = performance.now();
  let done = 0;
  tell(`0 of ${plural(all, "image")}`, 0, all);
  try {
    const finish = (entry, i) => {
      if (batch.tiles[i].image !== null) return;
      batch.tiles[i].finish(imageOf(entry, body, i, extra(i)));
      done += 1;
      tell(`${done} of ${plural(all, "image")}`, done, all);
    };
    const make = await makerOf(body);
    const answer = await make(body, signal, (event) => {
      if (event.call === event.calls) finish(event, event.image);
      else batch.tiles[event.image].preview(encodedIn(event), event.call, event.calls);
    });
    answer.data.forEach(finish);
    const spent = performance.now() - began;
    const where = answer.where ? ` ${answer.where}` : "";
    batch.end(`${time(spent)}${where}, of them ${time(answer.timings_ms.engine)} in the network`);
    tell(`${plural(all, "image")} in ${time(spent)}${where}.`);
  } catch (error) {
    batch.end(`ended after ${plural(batch.images.length, "image")}`);
    throw error;
  }
}

const isHere = (of) => of.browser && $("here").checked;

/** What makes the images of a body: the server, or this page where the form says so. Pictures and blends are the server's. */
async function makerOf(body) {
  const from = models.find((each) => each.id === body.model);
  if (!isHere(from) || body.image || body.seed_to !== undefined) return generateStream;
  const { generateHere } = await import("./local/generate.mjs");
  return (...given) => generateHere(from, ...given, tell);
}

const titleOf = (values, what) => [
  what, values.view === "strip" ? null : plural(values.steps, "step"), values.label === "" ? null : className(values.label),
  values.guidance === undefined ? null : `guidance ${values.guidance}`, `seed ${values.seed}`,
].filter(Boolean).join(" · ");

const className = (label) => ($("label").selectedOptions[0]?.value === label ? $("label").selectedOptions[0].textContent : label);

const named = () => model.class_names.length > 0;

const makeImages = (values) => busy(async (signal) => {
  const title = titleOf(values, plural(values.count, "image")) + (isHere(model) ? " · on this computer" : "");
  const batch = new Batch({ title, count: values.count, actions: actionsFor(model, values) });
  await fill(batch, bodyOf(values, named()), signal);
});

/** One seed with several step counts, one after the other, so that each time is its own. */
const makeStrip = (values) => busy(async (signal) => {
  const counts = STRIP_STEPS.filter((steps) => model.steps.includes(steps));
  const times = counts.map(() => element("small", {}, "…"));
  const headings = counts.map((steps, i) => element("h3", {}, plural(steps, "step"), times[i]));
  const batch = new Batch({ title: titleOf(values, "Step strip"), count: counts.length, actions: actionsFor(model, values), headings });
  try {
    for (const [i, steps] of counts.entries()) {
      tell(`${i} of ${plural(counts.length, "image")}`, i, counts.length);
      const body = bodyOf({ ...values, steps }, named()), answer = await generate(body, signal);
      batch.tiles[i].finish(imageOf(answer.data[0], body, 0));
      times[i].textContent = time(answer.timings_ms.engine);
    }
    tell("One step is one network call. More steps take longer, and the image gets better.");
  } finally {
    batch.end("the same seed; milliseconds in the network");
  }
});

const makeBetween = (values) => busy(async (signal) => {
  const film = player(), { count } = values;
  const title = titleOf(values, `${count} frames`) + ` to ${values.seedTo}`;
  const batch = new Batch({ title, count, actions: actionsFor(model, values), player: film.element });
  try {
    await fill(batch, bodyOf(values, named()), signal, (i) => ({ mix: i / (count - 1) }));
  } finally {
    film.show(batch.images);
  }
});

function makeWorld(values) {
  forgive();
  tell("");
  world = values;
  const { label, ...body } = bodyOf({ ...values, count: 1 }, named());
  delete body.seed;
  showMap({ ...body, label }, values.seed, model, place, $("map-fine").checked ? enlargerOf(models, model) : null);
}

/** What Generate does. */
async function submit() {
  try {
    if (model === null && !(await busy(load))) return;
    refreshSeeds();
    forgive();
    const values = valuesOf(model);
    writeAddress({ ...values, ...place });
    const make = { images: makeImages, strip: makeStrip, between: makeBetween, map: makeWorld }[values.view];
    await make(values);
  } catch (error) {
    complain(error);
  }
}

/**
 * What the editor's buttons do, in one request. "vary", "repaint": other versions of the picture, as many as the form
 * says. "answers": sixteen pictures with what is known, and then their mean and spread.
 */
async function again(what) {
  try {
    forgive();
    const { model: from, how, ...start } = asked(what), several = what === "answers" ? summary() : null;
    if (viewNow() === "images" && $("fresh").checked) $("seed").value = drawSeed();
    const values = valuesOf(from, "images"), count = several ? Math.min(ANSWERS, from.max_images) : values.count;
    const given = bodyOf({ ...values, count }, named());
    const body = { ...given, ...start, label: given.label ?? start.label };  // the form's class, or that of the image
    await busy(async (signal) => {
      const made = several ? [plural(count, "answer"), from.id] : [plural(count, "image"), how];
      const title = titleOf({ ...values, label: "" }, made.join(" · "));
      const batch = new Batch({ title, count, actions: actionsFor(from, values), player: several?.element });
      try {
        await fill(batch, body, signal, () => ({ how }));
      } finally {
        await several?.show(batch.images, from.resolution, values.steps > 1 ? ROUGHLY : ONE_CALL);
      }
    });
  } catch (error) {
    complain(error);
  } finally {
    redraw();
  }
}

// Pictures of one's own.

function startMeasurement() {
  try {
    forgive();
    if (!model?.edits) throw new Refused("This model takes no pictures.");
    measure(model, $("measure"));
    tell("Paint what you know. What is tinted is made.");
  } catch (error) {
    complain(error);
  }
}

async function openPicture(file) {
  try {
    forgive();
    if (!file) return;
    if (!model?.edits) throw new Refused("This model takes no pictures.");
    const rgba = await fitted(file, model.resolution, model);
    await edit({ encoded: encode(rgba, model.resolution), name: file.name, label: null, className: null }, model, $("open"));
    tell(`${file.name}: the square in its middle, in ${model.resolution}×${model.resolution} pixels.`);
  } catch (error) {
    complain(error);
  }
}

async function openMask(file) {
  try {
    forgive();
    if (file) await loadMask(file);
  } catch (error) {
    complain(error);
  }
}

const fileIn = (transfer) => [...(transfer?.files ?? [])][0];

const isMask = (event) => isEditing() && $("editor").contains(event.target);

function dropped(event) {
  document.body.classList.remove("dropping");
  const file = fileIn(event.dataTransfer);
  if (!file) return;
  event.preventDefault();
  if (isMask(event)) openMask(file);
  else openPicture(file);
}

// Start.

async function load() {
  useKey($("key").value.trim());
  models = await listModels();
  const choice = offered(models);
  $("model").replaceChildren(...choice.map((each) => new Option(each.id.includes(":") ? `${each.id} (posterior)` : each.id, each.id)));
  $("model-field").hidden = choice.length === 1;
  pick(choice.find((each) => each.id === wanted.model) ?? choice[0]);
  startMeter();
  if (wanted.model && wanted.model !== model.id) throw new Refused(`There is no model “${wanted.model}” here; this is ${model.id}.`, "model");
  if (wanted.label && wanted.label !== $("label").value) throw new Refused(`${model.id} has no class “${wanted.label}”.`, "label");
  checkGuidance(wanted.guidance);
}

/** Raises Refused where the slider cannot show what the link asks for; undefined: it asks for nothing. */
function checkGuidance(asked) {
  const weight = guidanceOf(model);
  if (asked === undefined || (weight && Number($("guidance").value) === asked)) return;
  if (!weight) throw new Refused(`${model.id} takes no guidance.`);
  throw new Refused(`${model.id} takes guidance from ${weight.low} to ${weight.high} in steps of ${$("guidance").step}, not ${asked}.`, "guidance");
}

function pick(chosen) {
  model = chosen;
  $("model").value = chosen.id;
  describe(model);
  const editor = adopt(model);
  if (editor !== null && editor !== model) tell(`The open picture stays with ${editor.id}: images of ${model.id} are of another kind.`);
  if (viewNow() === "map" && !model.edits) $("view-images").checked = true;
  const enlarger = enlargerOf(models, model);
  $("map-fine-field").hidden = enlarger === null;
  $("map-fine-by").textContent = enlarger?.id ?? "";
  showView();
}

function changeView() {
  stopMap();
  showView();
  forgive();
  tell("");
  if (viewNow() === "map" && model) submit();
}

function keyed(event) {
  if ($("viewer").open) return;  // it has keys of its own
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    submit();
  } else if (event.key === "Escape") {
    if (running !== null) cancel();
    else if (isEditing()) closeEditor();
    else cancel();
  }
}

prepareViewer();
prepareEditor();
prepareMap((moved) => {
  place = moved;
  clearTimeout(writing);  // browsers refuse more than some changes of the address a second
  writing = setTimeout(() => {
    if (viewNow() === "map") writeAddress({ ...world, ...place });
  }, 300);
}, complain);
$("copy").append(copyPanel(() => {
  if (model === null) throw new Refused("The server has not answered yet.");
  const values = valuesOf(model);
  if (values.view === "strip") values.steps = Math.max(...STRIP_STEPS.filter((steps) => model.steps.includes(steps)));
  return bodyOf(values, named());
}).panel);
$("form").addEventListener("submit", (event) => {
  event.preventDefault();
  if (matchMedia("(max-width: 52rem)").matches) $("results").scrollIntoView();  // they are below the form
  submit();
});
$("form").addEventListener("input", forgive);
for (const radio of document.querySelectorAll("[name=view]")) radio.addEventListener("change", changeView);
for (const id of ["steps", "guidance"]) $(id).addEventListener("input", () => { showSteps(); redraw(); });
$("model").addEventListener("change", () => pick(models.find((each) => each.id === $("model").value)));
$("key").addEventListener("input", () => useKey($("key").value.trim()));
for (const id of ["seed", "seed-to"]) $(id).addEventListener("input", () => { $("fresh").checked = false; });
$("map-stop").addEventListener("click", cancel);
$("map-fine").addEventListener("change", submit);
$("dice").addEventListener("click", () => {
  reuseSeed(drawSeed());
  if (viewNow() === "map") submit();
});
$("cancel").addEventListener("click", cancel);
for (const what of ["vary", "repaint", "answers"]) $(what).addEventListener("click", () => again(what));
$("measure").addEventListener("click", startMeasurement);
$("open").addEventListener("click", () => $("file").click());
$("file").addEventListener("change", () => { openPicture($("file").files[0]); $("file").value = ""; });
$("open-mask").addEventListener("click", () => $("mask-file").click());
$("mask-file").addEventListener("change", () => { openMask($("mask-file").files[0]); $("mask-file").value = ""; });
document.addEventListener("keydown", keyed);
document.addEventListener("paste", (event) => {
  const file = fileIn(event.clipboardData);
  if (file) (isMask(event) ? openMask : openPicture)(file);
});
document.addEventListener("dragover", (event) => {
  if (!event.dataTransfer.types.includes("Files")) return;
  event.preventDefault();
  document.body.classList.add("dropping");
});
document.addEventListener("dragleave", (event) => { if (!event.relatedTarget) document.body.classList.remove("dropping"); });
document.addEventListener("drop", dropped);

const wanted = readAddress();
place = wanted.place;
showView();
if (wanted.seeded && $("fresh").checked) {  // the link's seed is used once
  $("fresh").checked = false;
  submit().finally(() => { $("fresh").checked = true; });
} else {
  submit();
}
