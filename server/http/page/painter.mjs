// The editor: vary an image, repaint a part of it, or see the posterior of what is known of it. By pointer or by keys.

import { $ } from "./dom.mjs";
import { Mask, blank } from "./mask.mjs";
import { drawn, encode, fitted, grayOf, pixelsOf } from "./picture.mjs";
import { describeImage } from "./tiles.mjs";
import { plural } from "./words.mjs";

const CANVAS = 480;  // pixels of the canvas; the picture's are drawn as squares
let edited = null;  // { image, model, mask, touched, cursor, down, last, opener }

export const isEditing = () => edited !== null;

/** image: as in a tile, or of a file: { encoded, name }. opener: what gets the focus back. */
export async function edit(image, model, opener) {
  const side = model.resolution;
  show(image, model, new Mask(side, await pixelsOf(image.encoded, side)), opener);
  $("editor-title").textContent = image.name ? `Your picture ${image.name}` : describeImage(image);
}

/** Begin with a picture of which nothing is known; the brush paints what is. */
export function measure(model, opener) {
  show({ label: null, className: null }, model, new Mask(model.resolution, blank(model.resolution), true), opener);
  $("editor-title").textContent = "A measurement";
}

function show(image, model, mask, opener) {
  edited = { image, model, mask, touched: false, cursor: null, down: false, last: null, opener };
  const { side } = mask;
  $(mask.painted ? "paint-known" : "paint-unknown").checked = true;
  $("brush").max = Math.max(2, Math.round(side / 2));
  $("brush").value = Math.max(1, Math.round(side / 6));
  $("editor").hidden = false;
  $("canvas-said").textContent = "";
  redraw();
  $("editor").scrollIntoView({ block: "nearest" });
  $("canvas").focus({ preventScroll: true });
}

export function closeEditor() {
  const { opener } = edited;
  edited = null;
  $("editor").hidden = true;
  (opener?.isConnected ? opener : $("go")).focus();
}

const HOW = { vary: "varied", repaint: "repainted", answers: "answer" };

/** What Vary, Repaint or Answers asks for, beside the form's values: { image, strength, mask, label, model, how }. */
export function asked(what) {
  const { image, mask, model } = edited, { side } = mask;
  const own = image.className ?? image.label;
  const has = image.className === null ? own !== null && own < model.classes : model.class_names.includes(own);
  return {
    image: encode(what === "answers" ? mask.known() : mask.picture, side),
    strength: what === "answers" ? 1 : Number($("strength").value),
    mask: what === "vary" ? undefined : encode(mask.rgba(), side),
    label: has ? own : undefined,
    model,
    how: HOW[what],
  };
}

/** Another model edits from now on, if its images are of the same kind; the one that does, or null where nothing is open. */
export function adopt(model) {
  const same = (name) => model[name] === edited.model[name];
  if (edited !== null && model.edits && same("resolution") && same("channels")) edited.model = model;
  return edited?.model ?? null;
}

/** A file becomes the mask. Raises Refused. */
export async function loadMask(file) {
  const rgba = await fitted(file, edited.model.resolution, { flat: false });
  change(() => edited.mask.load(rgba));
}

export function redraw() {
  if (edited === null) return;
  const { mask, cursor } = edited, side = mask.side, scale = CANVAS / side;
  const context = $("canvas").getContext("2d");
  context.imageSmoothingEnabled = false;
  context.drawImage(drawn(mask.picture, side), 0, 0, CANVAS, CANVAS);
  context.fillStyle = "rgb(124 116 255 / 62%)";
  mask.pixels.forEach((on, i) => {
    if (on) context.fillRect((i % side) * scale, Math.floor(i / side) * scale, scale, scale);
  });
  if (cursor && document.activeElement === $("canvas")) drawBrush(context, cursor, scale);
  const painted = mask.painted;
  if (!edited.touched) $("strength").value = painted ? 1 : 0.5;  // as the server does when it is not told
  $("repaint").disabled = painted === 0;
  $("answers").disabled = painted === 0 || painted === side * side;
  $("undo").disabled = mask.past.length === 0;
  const strength = Number($("strength").value), steps = Number($("steps").value);
  $("strength-now").textContent = `${strength.toFixed(2)} · ${Math.max(1, Math.ceil(strength * steps - 1e-9))} of ${plural(steps, "call")}`;
  $("brush-now").textContent = `${$("brush").value} px`;
}

function drawBrush(context, { x, y }, scale) {
  const radius = Math.max(0.5, $("brush").value / 2) * scale;
  for (const [width, colour] of [[4, "black"], [2, edited.down ? "#ffb000" : "white"]]) {
    context.lineWidth = width;
    context.strokeStyle = colour;
    context.beginPath();
    context.arc(x * scale, y * scale, radius, 0, 2 * Math.PI);
    context.stroke();
  }
}

/** A change of the mask that is one step of undo. */
function change(what) {
  edited.mask.begin();
  what();
  redraw();
}

/** What the brush paints: the colour of what is known, or null for what is made again. */
function ink() {
  if ($("paint-unknown").checked) return null;
  const rgb = [1, 3, 5].map((at) => parseInt($("ink").value.slice(at, at + 2), 16));
  return edited.model.channels === 1 ? Array(3).fill(grayOf(...rgb)) : rgb;
}

/** The brush comes down: one step of undo. */
function dot({ x, y }) {
  edited.mask[ink() ? "beginInk" : "begin"]();
  edited.mask.dot(x, y, brush(), ink());
  redraw();
}

function placeOf(event) {
  const box = $("canvas").getBoundingClientRect(), { side } = edited.mask;
  return { x: (event.clientX - box.left) / box.width * side, y: (event.clientY - box.top) / box.height * side };
}

const brush = () => Number($("brush").value);

function pressed(event) {
  if (event.button !== 0) return;
  $("canvas").setPointerCapture(event.pointerId);
  edited.last = placeOf(event);
  dot(edited.last);
}

function moved(event) {
  if (!(event.buttons & 1) || !edited.last) return;
  const to = placeOf(event);
  edited.mask.line(edited.last, to, brush(), ink());
  edited.last = to;
  redraw();
}

const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

function keyed(event) {
  const { mask } = edited, { side } = mask;
  edited.cursor ??= { x: side / 2, y: side / 2 };
  if (event.key in ARROWS) {
    const [dx, dy] = ARROWS[event.key], far = event.shiftKey ? 4 : 1, from = { ...edited.cursor };
    edited.cursor = { x: clamp(from.x + far * dx, side), y: clamp(from.y + far * dy, side) };
    if (edited.down) mask.line(from, edited.cursor, brush(), ink());
  } else if (event.key === " ") {
    edited.down = !edited.down;
    if (edited.down) dot(edited.cursor);
  } else {
    return;
  }
  event.preventDefault();
  redraw();
  const { x, y } = edited.cursor;
  $("canvas-said").textContent = `Brush ${edited.down ? "down" : "up"} at ${Math.round(x)}, ${Math.round(y)}; ${plural(mask.painted, "pixel")} made again`;
}

const clamp = (value, side) => Math.min(side, Math.max(0, value));

function undo() {
  edited.mask.undo();
  edited.down = false;
  edited.last = null;  // a stroke that goes on would change what was before it
  redraw();
}

export function prepareEditor() {
  $("canvas").width = $("canvas").height = CANVAS;
  $("canvas").addEventListener("pointerdown", pressed);
  $("canvas").addEventListener("pointermove", moved);
  $("canvas").addEventListener("keydown", keyed);
  $("canvas").addEventListener("focus", redraw);
  $("canvas").addEventListener("blur", () => {
    if (edited) edited.down = false;
    redraw();
  });
  $("strength").addEventListener("input", () => { edited.touched = true; redraw(); });
  $("brush").addEventListener("input", redraw);
  $("half").addEventListener("click", () => change(() => edited.mask.lowerHalf()));
  $("invert").addEventListener("click", () => change(() => edited.mask.invert()));
  $("clear").addEventListener("click", () => change(() => edited.mask.clear()));
  $("undo").addEventListener("click", undo);
  $("close").addEventListener("click", closeEditor);
  $("editor").addEventListener("keydown", (event) => {
    if ((event.ctrlKey || event.metaKey) && event.key === "z") {
      event.preventDefault();
      undo();
    }
  });
}
