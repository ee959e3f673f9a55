// The window onto an endless world: pan by pointer or by arrow keys; tiles appear as they are made.

import { encodedIn, generate } from "./client.mjs";
import { $ } from "./dom.mjs";
import { encode, pixelsOf, save } from "./picture.mjs";
import { plural } from "./words.mjs";
import { World, finer, over } from "./world.mjs";

const AT_ONCE = 8;  // requests; browsers open six connections to a server

// { world, stride, finer, place: { x, y }, scale, abort }; place and stride in pixels of the model's own tiles, of which
// one is `finer` pixels of the world that is shown.
let shown = null;
let onChange = () => {}, onFailure = () => {};

/** changed(place): the window has moved. failed(error): a tile could not be made; the map waits until `showMap`. */
export function prepareMap(changed, failed) {
  [onChange, onFailure] = [changed, failed];
  const canvas = $("map");
  let from = null;
  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    from = { x: event.clientX, y: event.clientY, place: { ...shown.place } };
  });
  canvas.addEventListener("pointermove", (event) => {
    if (from === null || !(event.buttons & 1) || !shown) return;
    moveTo(from.place.x - (event.clientX - from.x) / shown.scale, from.place.y - (event.clientY - from.y) / shown.scale);
  });
  canvas.addEventListener("pointerup", () => { from = null; });
  canvas.addEventListener("keydown", (event) => {
    const [dx, dy] = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key] ?? [0, 0];
    if (!shown || (dx === 0 && dy === 0)) return;
    event.preventDefault();
    moveTo(shown.place.x + dx * shown.stride, shown.place.y + dy * shown.stride);  // a tile, so that one finds back
  });
  $("map-scale").addEventListener("input", () => shown && rescale());
  $("map-save").addEventListener("click", () => $("map").toBlob((blob) => save(blob, `world-${shown.world.seed}-${shown.place.x}-${shown.place.y}.png`)));
  new ResizeObserver(() => shown && !$("map-panel").hidden && draw()).observe(canvas);
}

/**
 * Show a world. body: { model, steps, label }, label as a tile's class; seed: the world's. enlarger: a model that makes
 * the tiles larger; null: they are shown as they are.
 */
export function showMap(body, seed, model, place, enlarger) {
  stopMap();
  const abort = new AbortController(), turn = queue(AT_ONCE);
  const made = (asked, side, start) => turn(async () => {
    abort.signal.throwIfAborted();
    const edit = start && { image: encode(start.rgba, side), mask: encode(maskOf(start.known), side), strength: 1 };
    const answer = await generate({ ...asked, ...edit }, abort.signal);
    const [entry] = answer.data;
    return { rgba: await pixelsOf(encodedIn(entry), side), label: entry.label };
  });
  const side = model.resolution;
  const own = new World({ side, seed, label: body.label ?? null, make: ({ seed: of, label, start }) => made({ ...body, label, seed: of }, side, start) });
  const world = enlarger === null ? own : finer(own, enlarger.resolution, ({ seed: of, start, low }) =>
    made({ model: enlarger.id, seed: of, upscale: encode(low.rgba, side) }, enlarger.resolution, start));
  shown = { world, stride: own.stride, finer: world.side / side, place, abort, scale: 1 };
  rescale();
}

/** Make no more tiles; those that are there stay. Whether some were being made. */
export function stopMap() {
  const busy = shown !== null && $("map-busy").value < $("map-busy").max;
  shown?.abort.abort();
  $("map-stop").hidden = true;
  return busy;
}

const maskOf = (known) => {
  const rgba = new Uint8ClampedArray(4 * known.length);
  known.forEach((kept, i) => rgba.set(kept ? [0, 0, 0, 255] : [255, 255, 255, 255], 4 * i));
  return rgba;
};

function rescale() {
  shown.scale = Number($("map-scale").value);
  $("map-scale-now").textContent = `${shown.scale}×`;
  draw();
}

function moveTo(x, y) {
  shown.place = { x: Math.round(x), y: Math.round(y) };
  draw();
}

/** Draw what is there of the window, and the rest as it comes. */
function draw() {
  const canvas = $("map"), now = shown, { world, place, abort } = now;
  canvas.width = Math.ceil(canvas.clientWidth / now.scale) * now.finer;
  canvas.height = Math.ceil(canvas.clientHeight / now.scale) * now.finer;
  const corner = { x: place.x * now.finer, y: place.y * now.finer };
  const context = canvas.getContext("2d"), view = { ...corner, width: canvas.width, height: canvas.height };
  const tiles = world.covering(view), drawn = new Map();  // "i,j" -> rgba
  const put = (i, j) => {
    const rgba = drawn.get(`${i},${j}`);
    if (rgba) context.putImageData(new ImageData(rgba, world.side, world.side), i * world.stride - corner.x, j * world.stride - corner.y);
  };
  let done = 0;
  onChange(place);
  say(0, tiles.length);
  for (const [i, j] of tiles) {
    world.tile(i, j).then(({ rgba }) => {
      if (shown !== now || now.place !== place || canvas.width !== view.width || canvas.height !== view.height) return;  // moved on
      drawn.set(`${i},${j}`, rgba);
      for (const each of over(i, j)) put(...each);
      say(++done, tiles.length);
    }, (error) => {
      if (shown !== now || abort.signal.aborted) return;
      abort.abort();
      onFailure(error);
    });
  }
}

function say(done, all) {
  $("map-busy").max = all;
  $("map-busy").value = done;
  $("map-stop").hidden = done === all;
  $("map-said").textContent = `${done} of ${plural(all, "tile")} at ${shown.place.x}, ${shown.place.y}`;
}

/** So many at a time; the last that asks is the next, because the window has moved on from the others. */
function queue(most) {
  const waiting = [];
  let running = 0;
  const next = () => {
    if (running === most || waiting.length === 0) return;
    running += 1;
    waiting.pop()();
  };
  return (work) => new Promise((resolve, reject) => {
    waiting.push(() => work().then(resolve, reject).finally(() => {
      running -= 1;
      next();
    }));
    next();
  });
}
