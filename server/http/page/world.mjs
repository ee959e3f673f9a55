// A world without end, made of tiles that continue their neighbours.
//
// Tile (i, j) covers side x side pixels from (i * stride, j * stride) on, stride = side - overlap, so neighbours share
// `overlap` pixels. What a tile continues depends on whether i and j are even, not on the order of panning:
//
//     i and j even    from noise alone
//     one is odd      its two neighbours in that direction
//     both are odd    its four neighbours
//
// Of the shared pixels the outer half is kept, and the inner half fades from the neighbour's pixels to the tile's own, so
// that no edge is seen. A tile is drawn over those that it continues (`over`). It needs at most four others that need two
// each, and the pixels of a place follow from the world's seed, the class, the step count and the model.

import { seedAt } from "./seeds.mjs";

export const KEPT_TILES = 1500;
const KEPT_BYTES = 2 ** 28;  // of tiles, where they are large

export class World {
  /**
   * make: an async function of { seed, label, start, i, j }, start null or { rgba, known } (known: Uint8Array, 1 where a pixel
   * is kept), that returns { rgba, label }. label: of every tile; null: a tile that begins at noise has that of its
   * seed, the others that of a neighbour.
   */
  constructor({ side, seed, label, make }) {
    Object.assign(this, { side, seed, label, make });
    this.overlap = Math.floor(side / 4);
    this.stride = side - this.overlap;
    this.kept = Math.min(KEPT_TILES, Math.floor(KEPT_BYTES / (4 * side * side)));
    this.tiles = new Map();  // "i,j" -> promise, in the order of their last use
  }

  /** [i, j] of all tiles that cover some of a rectangle of pixels, the nearest to its centre first. */
  covering({ x, y, width, height }) {
    const first = (from) => Math.ceil((from - this.side + 1) / this.stride);
    const last = (from, length) => Math.floor((from + length - 1) / this.stride);
    const found = [];
    for (let j = first(y); j <= last(y, height); j++) {
      for (let i = first(x); i <= last(x, width); i++) found.push([i, j]);
    }
    const middle = (i, from, length) => i * this.stride + this.side / 2 - from - length / 2;
    const distance = ([i, j]) => Math.hypot(middle(i, x, width), middle(j, y, height));
    return found.sort((a, b) => distance(a) - distance(b));
  }

  /** A promise of { rgba, label } of one tile. A tile that failed is made anew when it is asked for again. */
  tile(i, j) {
    const name = `${i},${j}`;
    const known = this.tiles.get(name);
    const promise = known ?? this.#made(i, j);
    this.tiles.delete(name);
    this.tiles.set(name, promise);
    if (known === undefined) {
      promise.catch(() => this.tiles.delete(name));
      if (this.tiles.size > this.kept) this.tiles.delete(this.tiles.keys().next().value);
    }
    return promise;
  }

  async #made(i, j) {
    const places = neighbours(i, j);
    const tiles = await Promise.all(places.map(([di, dj]) => this.tile(i + di, j + dj)));
    const shared = places.length === 0 ? null : this.#shared(places, tiles);
    const label = this.label ?? tiles[0]?.label ?? null;
    const start = shared && { rgba: shared.rgba, known: Uint8Array.from(shared.share, (share) => share === 1) };
    const made = await this.make({ seed: seedAt(this.seed, i, j), label, start, i, j });
    return { rgba: shared ? faded(shared, made.rgba) : made.rgba, label: label ?? made.label };
  }

  /**
   * What a tile has of its neighbours: their pixels where they share some, mid gray elsewhere, which stands for nothing;
   * and their share of each pixel of the result: 1 in the outer half of the overlap, falling to 0 in the inner half.
   */
  #shared(places, tiles) {
    const { side, stride, overlap } = this;
    const rgba = new Uint8ClampedArray(4 * side * side).fill(128), share = new Float32Array(side * side);
    for (let at = 0; at < share.length; at++) {
      const x = at % side, y = Math.floor(at / side);
      // In a corner, two neighbours: that whose edge is nearer is the one that is seen beyond the edge.
      const depths = places.map(([di, dj]) => (di + dj < 0 ? -(di * x + dj * y) : side - 1 - (di * x + dj * y)));
      const depth = Math.min(...depths), nearest = depths.indexOf(depth), [di, dj] = places[nearest];
      rgba[4 * at + 3] = 255;
      if (depth >= overlap) continue;
      const source = 4 * ((y - dj * stride) * side + x - di * stride);
      rgba.set(tiles[nearest].rgba.subarray(source, source + 4), 4 * at);
      share[at] = Math.min((overlap - depth - 0.5) / (overlap / 2), 1);
    }
    return { rgba, share };
  }
}

/** A tile's own pixels, and its neighbours' where they have a share. */
function faded({ rgba, share }, own) {
  return own.map((value, k) => value + (rgba[k] - value) * share[k >> 2]);  // a Uint8ClampedArray rounds
}

/** 0 for a tile that continues none, 1 for one that continues two, 2 for one that continues four. */
const rank = (i, j) => neighbours(i, j).length / 2;

/** [i, j] and the tiles around it that are drawn over it, because they continue it, in the order of drawing. */
export function over(i, j) {
  const around = [-1, 0, 1].flatMap((dj) => [-1, 0, 1].map((di) => [i + di, j + dj]));
  const above = around.filter((place) => rank(...place) > rank(i, j));
  return [[i, j], ...above.sort((a, b) => rank(...a) - rank(...b))];
}

/**
 * The same world in finer pixels: tile (i, j) is that of `coarse`, enlarged, and continues its finer neighbours in the
 * way that `coarse` continues its own. make: as of a World, with the tile of `coarse` as `low` beside the rest.
 */
export const finer = (coarse, side, make) => new World({
  side, seed: coarse.seed, label: coarse.label,
  make: async (asked) => make({ ...asked, low: await coarse.tile(asked.i, asked.j) }),
});

/** Where the tiles are that a tile continues. */
export function neighbours(i, j) {
  const across = i % 2 === 0 ? [] : [[-1, 0], [1, 0]];
  const down = j % 2 === 0 ? [] : [[0, -1], [0, 1]];
  return [...across, ...down];
}
