// The editor: vary an image, or paint over a part of it and repaint that. By pointer or by keys.

import { $ } from "./dom.mjs";
import { Mask } from "./mask.mjs";
import { dataUrl, encode, fitted } from "./picture.mjs";
import { describeImage } from "./tiles.mjs";
import { plural } from "./words.mjs";

const CANVAS = 480;  // pixels of the canvas; the picture's are drawn as squares
let edited = null;  // { image, model, picture, mask, touched, cursor, down, opener }

export const isEditing = () => edited !== null;

/** image: as in a tile, or of a file: { encoded, name }. opener: what gets the focus back. */
export async function edit(image, model, opener) {
  const picture = new Image();
  picture.src = dataUrl(image.encoded);
  await picture.decode();
  const side = model.resolution;
  edited = { image, model, picture, mask: new Mask(side), touched: false, cursor: null, down: false, last: null, opener };
  $("brush").max = Math.max(2, Math.round(side / 2));
  $("brush").value = Math.max(1, Math.round(side / 6));
  $("editor-title").textContent = image.name ? `Your picture ${image.name}` : describeImage(image);
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

/** What Vary or Repaint asks for, beside the form's values: { image, strength, mask, label, how }. */
export function asked(masked) {
  const { image, mask, model } = edited;
  return {
    image: image.encoded,
    strength: Number($("strength").value),
    mask: masked ? encode(mask.rgba(), model.resolution) : undefined,
    label: image.className ?? image.label ?? undefined,
    model,
    how: masked ? "repainted" : "varied",
  };
}

/** A file becomes the mask. Raises Refused. */
export async function loadMask(file) {
  const rgba = await fitted(file, edited.model.resolution, { flat: false });
  change(() => edited.mask.load(rgba));
}

export function redraw() {
  if (edited === null) return;
  const { mask, cursor, picture } = edited, side = mask.side, scale = CANVAS / side;
  const context = $("canvas").getContext("2d");
  context.imageSmoothingEnabled = false;
  context.drawImage(picture, 0, 0, CANVAS, CANVAS);
  context.fillStyle = "rgb(124 116 255 / 62%)";
  mask.pixels.forEach((on, i) => {
    if (on) context.fillRect((i % side) * scale, Math.floor(i / side) * scale, scale, scale);
  });
  if (cursor && document.activeElement === $("canvas")) drawBrush(context, cursor, scale);
  const painted = mask.painted;
  if (!edited.touched) $("strength").value = painted ? 1 : 0.5;  // as the server does when it is not told
  $("repaint").disabled = painted === 0;
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

function placeOf(event) {
  const box = $("canvas").getBoundingClientRect(), { side } = edited.mask;
  return { x: (event.clientX - box.left) / box.width * side, y: (event.clientY - box.top) / box.height * side };
}

const brush = () => Number($("brush").value);

function pressed(event) {
  if (event.button !== 0) return;
  $("canvas").setPointerCapture(event.pointerId);
  edited.last = placeOf(event);
  change(() => edited.mask.dot(edited.last.x, edited.last.y, brush()));
}

function moved(event) {
  if (!(event.buttons & 1) || !edited.last) return;
  const to = placeOf(event);
  edited.mask.line(edited.last, to, brush());
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
    if (edited.down) mask.line(from, edited.cursor, brush());
  } else if (event.key === " ") {
    edited.down = !edited.down;
    if (edited.down) {
      mask.begin();
      mask.dot(edited.cursor.x, edited.cursor.y, brush());
    }
  } else {
    return;
  }
  event.preventDefault();
  redraw();
  const { x, y } = edited.cursor;
  $("canvas-said").textContent = `Brush ${edited.down ? "down" : "up"} at ${Math.round(x)}, ${Math.round(y)}; ${plural(mask.painted, "pixel")} painted`;
}

const clamp = (value, side) => Math.min(side, Math.max(0, value));

function undo() {
  edited.mask.undo();
  edited.down = false;
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
