// The page's modules that need no page. Run by test_page_modules.py with `node --test`.

import assert from "node:assert/strict";
import { test } from "node:test";

const page = (name) => import(`../../../server/http/page/${name}.mjs`);
const { LAST_SEED, drawSeed, parseSeed, seedAt } = await page("seeds");
const { eventsOf } = await page("events");
const { Refused, plural, refusalOf, time } = await page("words");
const { bodyOfOne, toJson } = await page("request");
const { Mask, blank } = await page("mask");
const { fromAddress, toAddress } = await page("address");
const { countersIn, rates } = await page("counters");
const { colourOf, statistics } = await page("spread");
const { World, finer, neighbours, over } = await page("world");
const { enlargerOf, offered } = await page("client");

test("a seed is a whole number from 0 to 2^63 - 1", () => {
  assert.deepEqual(["0", " 7 ", "9223372036854775807"].map(parseSeed), [0n, 7n, LAST_SEED]);
  for (const wrong of ["", "-1", "1.5", "9223372036854775808", "1e3", "0x10", "١"]) assert.equal(parseSeed(wrong), null, wrong);
  assert.ok(drawSeed() < 2n ** 32n);
});

test("a place of a world has the seed of SplitMix64", () => {  // values of an implementation in Python
  assert.deepEqual([seedAt(7n, 0, 0), seedAt(7n, -1, 2), seedAt(LAST_SEED, 5, -3)], [2017972797774257528n, 5064391949374466701n, 4886390292460477114n]);
  const many = new Set(Array.from({ length: 900 }, (_, k) => seedAt(7n, (k % 30) - 15, Math.floor(k / 30) - 15)));
  assert.equal(many.size, 900);
});

test("events are the same however the body is cut", async () => {
  const text = ': keepalive\n\nevent: preview\ndata: {"image": 0, "name": "Élan"}\n\nevent: images\ndata: {"data": []}\n\n';
  const bytes = new TextEncoder().encode(text);
  for (let size = 1; size <= bytes.length; size += 5) {
    const pieces = async function* () {
      for (let at = 0; at < bytes.length; at += size) yield bytes.slice(at, at + size);
    };
    const found = [];
    for await (const event of eventsOf(pieces())) found.push(event);
    assert.deepEqual(found, [{ name: "preview", data: { image: 0, name: "Élan" } }, { name: "images", data: { data: [] } }]);
  }
});

test("errors are in the words of the labels", () => {
  const said = (error, status = 400, after = null) => refusalOf(status, error, after, true);
  const n = said({ message: "n must be from 1 to 64, not 0", param: "n" });
  assert.deepEqual([n.message, n.field, n instanceof Refused], ["Images must be from 1 to 64, not 0.", "count", true]);
  assert.equal(said({ message: "seed_to must be at least 0", param: "seed_to" }).message, "Second seed must be at least 0.");
  assert.equal(said({ message: "the server is full" }, 429, "3").message, "The server is full. Try again in 3 seconds.");
  assert.equal(said({ message: "no worker is there" }, 503, "1").message, "The server cannot answer now: no worker is there. Try again in 1 second.");
  assert.equal(said(undefined, 502).message, "The server answered 502 and did not say why.");
  assert.deepEqual([said({}, 401).field, refusalOf(401, null, null, false).message], ["key", "This server asks for an API key."]);
  assert.deepEqual([plural(1, "step"), plural(2, "step"), time(1.26), time(93.4), time(2100)], ["1 step", "2 steps", "1.3 ms", "93 ms", "2.1 s"]);
});

test("a body keeps large seeds exact and leaves out what is absent", () => {
  assert.equal(toJson({ steps: 4, seed: LAST_SEED, label: undefined, mask: null, model: 'a"b' }), '{"steps": 4, "seed": 9223372036854775807, "model": "a\\"b"}');
  const body = { model: "m", steps: 4, n: 12, seed: 7n, seed_to: 9n };
  assert.deepEqual(bodyOfOne(body, { seed: 7n, label: 3, className: null, mix: 0.5 }), { model: "m", steps: 4, seed: 7n, seed_to: 9n, label: 3, mix: 0.5 });
});

test("a mask is painted, undone and loaded", () => {
  const mask = new Mask(8);
  mask.begin();
  mask.line({ x: 0.5, y: 4 }, { x: 7.5, y: 4 }, 1);
  assert.deepEqual([...mask.pixels.slice(24, 40)].filter(Boolean).length >= 8, true, "a fast pointer leaves no gap");
  mask.begin();
  mask.invert();
  const inverted = mask.painted;
  assert.ok(mask.undo() && mask.painted === 64 - inverted);
  assert.ok(mask.undo() && mask.painted === 0 && !mask.undo());
  mask.lowerHalf();
  assert.deepEqual([mask.painted, mask.pixels[31], mask.pixels[32]], [32, 0, 1]);
  assert.deepEqual([...mask.rgba().slice(4 * 32, 4 * 33), ...mask.rgba().slice(0, 4)], [255, 255, 255, 255, 0, 0, 0, 255]);
  const gray = new Uint8ClampedArray(256).fill(255);
  gray.set([127, 127, 127], 0);
  gray.set([128, 128, 128], 4);
  mask.load(gray);
  assert.deepEqual([mask.painted, mask.pixels[0], mask.pixels[1]], [63, 0, 1], "white is made again");
  gray[3] = 0;
  mask.load(gray);
  assert.deepEqual([mask.painted, mask.pixels[0]], [1, 1], "where something is transparent, that is made again");
});

test("what is known is painted, undone and cleared, and the rest is sent as gray", () => {
  const mask = new Mask(4, blank(4), true), red = [200, 0, 0];
  mask.beginInk();
  mask.dot(0.5, 0.5, 1, red);
  assert.deepEqual([mask.painted, mask.pixels[0], ...mask.picture.slice(0, 4)], [15, 0, 200, 0, 0, 255]);
  mask.begin();
  mask.dot(0.5, 0.5, 1);
  assert.deepEqual([mask.painted, ...mask.known().slice(0, 8)], [16, 128, 128, 128, 255, 128, 128, 128, 255], "nothing of it is told");
  assert.equal(mask.picture[0], 200, "it is still there");
  mask.undo();
  assert.deepEqual([mask.painted, ...mask.known().slice(0, 8)], [15, 200, 0, 0, 255, 128, 128, 128, 255]);
  mask.undo();
  assert.deepEqual([mask.painted, mask.picture[0]], [16, 128]);
  mask.beginInk();
  mask.line({ x: 0, y: 2 }, { x: 4, y: 2 }, 4, red);
  mask.clear();
  assert.deepEqual([mask.painted, [...mask.picture]], [16, [...blank(4)]]);
});

test("the mean and the spread are those of the pixels", () => {
  const pictures = [[0, 10, 0], [100, 10, 30]].map((rgb) => new Uint8ClampedArray([...rgb, 255, 50, 50, 50, 255]));
  const { mean, spread } = statistics(pictures);
  assert.deepEqual([...mean], [50, 10, 15, 255, 50, 50, 50, 255]);
  assert.ok(Math.abs(spread[0] - Math.sqrt((5000 + 0 + 450) / 3)) < 1e-9 && spread[1] === 0);
  const light = ([red, green, blue]) => 0.299 * red + 0.587 * green + 0.114 * blue;
  const scale = Array.from({ length: 21 }, (_, i) => light(colourOf(i / 20)));
  assert.deepEqual(scale, scale.toSorted((a, b) => a - b), "more is lighter");
  assert.deepEqual([colourOf(-1), colourOf(2)], [colourOf(0), colourOf(1)]);
});

test("the address holds the form's values and nothing that is wrong", () => {
  const values = { view: "between", model: "fashion", steps: 2, label: "T-shirt/top", guidance: 2.5, seed: LAST_SEED, seedTo: 3n, fresh: false, count: 9 };
  assert.deepEqual(fromAddress(toAddress(values)), { ...values, x: undefined, y: undefined });
  const map = fromAddress(toAddress({ view: "map", model: "earth", steps: 4, label: "", seed: 5n, fresh: true, count: 1, x: -120, y: 48 }));
  assert.deepEqual([map.view, map.label, map.x, map.y, map.count, map.fresh, map.guidance], ["map", undefined, -120, 48, undefined, undefined, undefined]);
  const wrong = fromAddress("?view=x&seed=-1&n=1e9&steps=four&to=9223372036854775808&x=1.5&guidance=1e2");
  assert.deepEqual(Object.values(wrong).filter((value) => value !== undefined), []);
});

test("counters are summed over models and workers, and compared over time", () => {
  const page = (images, rows, padding) => countersIn(`# HELP fewstep_images_total Images.
fewstep_images_total{model="a",steps="4"} ${images}
fewstep_images_total{model="b",steps="1"} 1
fewstep_image_rows_total{model="a",worker="0"} ${rows}
fewstep_padded_rows_total{model="a",worker="0"} ${padding}
fewstep_waiting_images{model="a",worker="0"} 3
fewstep_images_created 1e9
`);
  const readings = [[0, 0, 0, 0], [2000, 10, 30, 30], [4000, 20, 90, 50]].map(([at, ...counts]) => ({ at, counters: page(...counts) }));
  assert.deepEqual(rates(readings), { imagesPerSecond: 5, occupancy: 0.75, waiting: 3 });
  assert.equal(rates([readings[2], readings[2], { ...readings[2], at: 5000 }]).occupancy, null);
});

// A "network" whose tile depends on all that it is given, and keeps the pixels that are known.
async function make({ seed, label, start }) {
  await new Promise((resolve) => setImmediate(resolve));
  let state = Number(seed % 2147483647n) || 1;
  if (start) start.rgba.forEach((value, at) => { if (start.known[at >> 2]) state = (state * 31 + value) % 2147483647; });
  const rgba = new Uint8ClampedArray(4 * 16 * 16);
  for (let at = 0; at < 256; at++) {
    state = (state * 48271) % 2147483647;
    rgba.set(start?.known[at] ? start.rgba.subarray(4 * at, 4 * at + 4) : [state & 255, 0, 0, 255], 4 * at);
  }
  return { rgba, label: label ?? Number(seed % 10n) };
}

const world = (seed = 7n, label = null) => new World({ side: 16, seed, label, make });

test("a world is the same whatever the order of panning", async () => {
  const places = Array.from({ length: 36 }, (_, k) => [(k % 6) - 3, Math.floor(k / 6) - 3]);
  const [one, other] = [world(), world()], found = new Map();
  for (const [i, j] of places) found.set(`${i},${j}`, await one.tile(i, j));
  for (const [i, j] of places.toReversed()) assert.deepEqual(await other.tile(i, j), found.get(`${i},${j}`));
  assert.notDeepEqual((await world(8n).tile(0, 0)).rgba, found.get("0,0").rgba);
});

// What is seen of a tile's own coordinates: the tiles in the order of drawing, each over the former.
async function seen(w, i, j) {
  const pixels = new Map(), places = [-1, 0, 1].flatMap((dj) => [-1, 0, 1].map((di) => [i + di, j + dj]));
  for (const [a, b] of places.sort((one, other) => neighbours(...one).length - neighbours(...other).length)) {
    const { rgba } = await w.tile(a, b);
    for (let k = 0; k < 256; k++) pixels.set(`${(a - i) * w.stride + (k % 16)},${(b - j) * w.stride + (k >> 4)}`, rgba[4 * k]);
  }
  return (x, y) => pixels.get(`${x},${y}`);
}

test("a tile has its neighbours' pixels at its edge and fades to its own", async () => {
  // Neighbours that are flat: 0 on the left, 240 above. Their own tiles would be 120 everywhere.
  const flat = (value) => ({ rgba: new Uint8ClampedArray(1024).fill(value), label: 0 });
  const w = new World({ side: 16, seed: 7n, label: null, make: async () => flat(120) });
  for (const [i, j, value] of [[0, 1, 0], [2, 1, 0], [1, 0, 240], [1, 2, 240]]) w.tiles.set(`${i},${j}`, Promise.resolve(flat(value)));
  const { rgba } = await w.tile(1, 1), row = (y) => Array.from({ length: 8 }, (_, x) => rgba[4 * (16 * y + x)]);
  assert.deepEqual(row(8), [0, 0, 30, 90, 120, 120, 120, 120]);  // overlap 4: two kept, two faded
  assert.deepEqual(row(0), [0, 240, 240, 240, 240, 240, 240, 240]);  // the corner is that of the nearer edge
  assert.deepEqual([2, 3, 4].map((y) => rgba[4 * (16 * y + 8)]), [210, 150, 120]);
});

test("no edge of a tile is seen: what lies beyond continues in the outer half of the overlap", async () => {
  const w = world();
  for (let j = -2; j < 2; j++) {
    for (let i = -2; i < 2; i++) {
      const shown = await seen(w, i, j), { rgba } = await w.tile(i, j), pixel = (x, y) => rgba[4 * (16 * y + x)];
      for (const [di, dj] of neighbours(i, j)) {
        const other = await w.tile(i + di, j + dj);
        for (let along = w.overlap; along < 16 - w.overlap; along++) {  // corners: the test above
          for (let k = 0; k < w.overlap / 2; k++) {
            const depth = di + dj < 0 ? k : 15 - k, [x, y] = di ? [depth, along] : [along, depth];
            const theirs = other.rgba[4 * (16 * (y - dj * w.stride) + x - di * w.stride)];
            assert.deepEqual([pixel(x, y), shown(x, y)], [theirs, theirs], `${i},${j} at ${x},${y}`);
          }
        }
      }
    }
  }
});

test("a tile is drawn again over one that it continues", () => {
  assert.deepEqual(over(1, 1), [[1, 1]]);
  assert.deepEqual(over(1, 0), [[1, 0], [1, -1], [1, 1]]);
  assert.deepEqual(over(0, 0).slice(0, 5), [[0, 0], [0, -1], [-1, 0], [1, 0], [0, 1]]);
  assert.equal(over(0, 0).length, 9);
});

test("a tile has the world's class, or that of a tile it continues", async () => {
  assert.equal((await world(7n, "coast").tile(3, 3)).label, "coast");
  const w = world();
  assert.equal((await w.tile(1, 0)).label, (await w.tile(0, 0)).label);
  assert.deepEqual([neighbours(2, -4), neighbours(-1, 0), neighbours(-1, 3).length], [[], [[-1, 0], [1, 0]], 4]);
});

test("the tiles of a window cover it, the nearest to its middle first", () => {
  const w = world(), window = { x: -37, y: 5, width: 50, height: 30 };
  const tiles = w.covering(window), covered = new Set();
  for (const [i, j] of tiles) {
    for (let k = 0; k < 256; k++) covered.add(`${i * w.stride + (k % 16)},${j * w.stride + (k >> 4)}`);
  }
  for (let y = 5; y < 35; y++) for (let x = -37; x < 13; x++) assert.ok(covered.has(`${x},${y}`), `${x},${y}`);
  const far = ([i, j]) => Math.hypot(i * 12 + 8 - (-37 + 25), j * 12 + 8 - (5 + 15));
  assert.deepEqual(tiles.map(far), tiles.map(far).toSorted((a, b) => a - b));
});

test("a finer world enlarges the tiles of its coarse one and shares pixels as it does", async () => {
  const asked = [];
  const fine = () => finer(world(), 32, async ({ seed, start, low }) => {
    asked.push(seed);
    const rgba = new Uint8ClampedArray(4 * 32 * 32);
    for (let at = 0; at < 1024; at++) {
      const under = 4 * (16 * (at >> 6) + ((at % 32) >> 1));
      rgba.set(start?.known[at] ? start.rgba.subarray(4 * at, 4 * at + 4) : low.rgba.subarray(under, under + 4), 4 * at);
    }
    return { rgba, label: null };
  });
  const w = fine(), coarse = world();
  assert.deepEqual([w.stride, w.overlap], [2 * coarse.stride, 2 * coarse.overlap]);
  for (const [i, j] of [[0, 0], [1, 0], [1, 1], [-1, 2]]) {
    const [{ rgba }, below] = [await w.tile(i, j), await coarse.tile(i, j)];
    for (let at = 0; at < 1024; at++) {
      const [x, y] = [at % 32, at >> 5], depths = neighbours(i, j).map(([di, dj]) => (di + dj < 0 ? -(di * x + dj * y) : 31 - di * x - dj * y));
      if (depths.some((depth) => depth >= w.overlap / 2 && depth < w.overlap)) continue;  // fades
      assert.equal(rgba[4 * at], below.rgba[4 * (16 * (y >> 1) + (x >> 1))], `${i},${j} at ${x},${y}`);
    }
  }
  assert.ok(asked.includes(seedAt(7n, 0, 0)) && new Set(asked).size === asked.length);
  assert.equal(new World({ side: 256, seed: 1n, label: null, make }).kept, 1024);
  assert.equal(world().kept, 1500);
});

test("the model that enlarges tiles is the one that takes images of their size", () => {
  const model = { id: "earth", channels: 3, resolution: 64, conditions: [{ name: "guidance", shape: [], default: 1 }] };
  const other = { id: "text", channels: 3, resolution: 64, conditions: [{ name: "text", shape: [64] }] };
  const small = { id: "x2", channels: 3, resolution: 64, conditions: [{ name: "low", shape: [3, 32, 32] }] };
  const fits = { id: "x4", channels: 3, resolution: 256, conditions: [{ name: "low", shape: [3, 64, 64], default: null }] };
  assert.equal(enlargerOf([model, other, small, fits], model), fits);
  assert.equal(enlargerOf([model, other, small], model), null);
  assert.deepEqual([offered([fits, model]), offered([fits])], [[model], [fits]]);
});

test("a tile that failed is made again when it is asked for again", async () => {
  let fails = true;
  const w = new World({ side: 16, seed: 7n, label: null, make: async (asked) => {
    if (fails) throw new Error("no");
    return make(asked);
  } });
  await assert.rejects(w.tile(1, 1));
  fails = false;
  assert.deepEqual(await w.tile(1, 1), await world().tile(1, 1));
});
