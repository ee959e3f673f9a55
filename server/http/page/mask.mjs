// Which pixels of a picture are to be made again, with undo.

const KEPT_STEPS = 100;  // of undo

export class Mask {
  constructor(side) {
    this.side = side;
    this.pixels = new Uint8Array(side * side);  // 1: made again
    this.past = [];
  }

  get painted() {
    return this.pixels.reduce((sum, on) => sum + on, 0);
  }

  /** What follows is one step of undo. */
  begin() {
    this.past.push(this.pixels.slice());
    if (this.past.length > KEPT_STEPS) this.past.shift();
  }

  /** Whether there was a step to undo. */
  undo() {
    const before = this.past.pop();
    if (before) this.pixels = before;
    return before !== undefined;
  }

  /** A dot of a brush; x, y and diameter in pixels of the picture. */
  dot(x, y, diameter) {
    const { side } = this, radius = Math.max(0.5, diameter / 2);
    for (let row = 0; row < side; row++) {
      for (let column = 0; column < side; column++) {
        if (Math.hypot(column + 0.5 - x, row + 0.5 - y) <= radius) this.pixels[row * side + column] = 1;
      }
    }
  }

  /** Dots along a line, so that a fast pointer leaves no gaps. */
  line(from, to, diameter) {
    const steps = Math.max(1, Math.ceil(Math.hypot(to.x - from.x, to.y - from.y)));
    for (let i = 0; i <= steps; i++) {
      this.dot(from.x + (to.x - from.x) * i / steps, from.y + (to.y - from.y) * i / steps, diameter);
    }
  }

  lowerHalf() {
    this.pixels.fill(1, this.pixels.length / 2);
  }

  invert() {
    this.pixels = this.pixels.map((on) => 1 - on);
  }

  clear() {
    this.pixels.fill(0);
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
