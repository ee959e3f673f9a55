// A picture, and which of its pixels are to be made again; both are painted on, with undo.

const KEPT_STEPS = 100;  // of undo
const GRAY = [128, 128, 128, 255];

/** A picture of which nothing is known: RGBA. */
export const blank = (side) => new Uint8ClampedArray(Array.from({ length: side * side }, () => GRAY).flat());

export class Mask {
  /** picture: RGBA. unknown: whether all of it is made again at first. */
  constructor(side, picture = new Uint8ClampedArray(4 * side * side), unknown = false) {
    this.side = side;
    this.picture = picture;
    this.pixels = new Uint8Array(side * side).fill(Number(unknown));  // 1: made again
    this.first = { picture, pixels: this.pixels };
    this.past = [];
  }

  get painted() {
    return this.pixels.reduce((sum, on) => sum + on, 0);
  }

  /** What follows is one step of undo. Whatever changes pixels puts new arrays in place of those of `past`. */
  begin() {
    this.past.push({ picture: this.picture, pixels: this.pixels });
    this.pixels = this.pixels.slice();
    if (this.past.length > KEPT_STEPS) this.past.shift();
  }

  /** Whether there was a step to undo. */
  undo() {
    const before = this.past.pop();
    Object.assign(this, before);
    return before !== undefined;
  }

  /** What follows paints known pixels, too: one step of undo. */
  beginInk() {
    this.begin();
    this.picture = this.picture.slice();
  }

  /** A dot of a brush; x, y and diameter in pixels of the picture. ink: [r, g, b] of what is known; null: made again. */
  dot(x, y, diameter, ink = null) {
    const { side } = this, radius = Math.max(0.5, diameter / 2);
    for (let row = 0; row < side; row++) {
      for (let column = 0; column < side; column++) {
        if (Math.hypot(column + 0.5 - x, row + 0.5 - y) > radius) continue;
        const at = row * side + column;
        this.pixels[at] = Number(ink === null);
        if (ink) this.picture.set(ink, 4 * at);
      }
    }
  }

  /** Dots along a line, so that a fast pointer leaves no gaps. */
  line(from, to, diameter, ink = null) {
    const steps = Math.max(1, Math.ceil(Math.hypot(to.x - from.x, to.y - from.y)));
    for (let i = 0; i <= steps; i++) {
      this.dot(from.x + (to.x - from.x) * i / steps, from.y + (to.y - from.y) * i / steps, diameter, ink);
    }
  }

  lowerHalf() {
    this.pixels.fill(1, this.pixels.length / 2);
  }

  invert() {
    this.pixels = this.pixels.map((on) => 1 - on);
  }

  /** As it was at first. */
  clear() {
    Object.assign(this, { picture: this.first.picture, pixels: this.first.pixels.slice() });
  }

  /** The picture with gray in place of what is made again, so that an answer begins at nothing of it. */
  known() {
    const out = this.picture.slice();
    this.pixels.forEach((on, i) => { if (on) out.set(GRAY, 4 * i); });
    return out;
  }

  /**
   * Take the mask of a picture, RGBA of this side, by the API's rule: where some pixel is transparent, those of an alpha
   * below 128; else those that are white, gray from 128 on.
   */
  load(rgba) {
    const alpha = (i) => rgba[4 * i + 3];
    const transparent = this.pixels.some((_, i) => alpha(i) < 255);
    const gray = (i) => 0.299 * rgba[4 * i] + 0.587 * rgba[4 * i + 1] + 0.114 * rgba[4 * i + 2];
    this.pixels = this.pixels.map((_, i) => Number(transparent ? alpha(i) < 128 : gray(i) >= 127.5));
  }

  /** RGBA, white where to make again, as the API takes it. */
  rgba() {
    const out = new Uint8ClampedArray(4 * this.pixels.length);
    this.pixels.forEach((on, i) => out.set([255 * on, 255 * on, 255 * on, 255], 4 * i));
    return out;
  }
}
