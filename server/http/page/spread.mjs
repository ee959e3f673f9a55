// Several answers to one question: their mean, and how far they spread, pixel by pixel.

import { element, button } from "./dom.mjs";
import { bytesOf, dataUrl, encode, pixelsOf, save } from "./picture.mjs";

// Dark to light, for none to the most; lightness rises evenly, so that it is read without colours, too.
const STOPS = [[0, 0, 4], [87, 16, 110], [188, 55, 84], [249, 142, 9], [252, 255, 164]];

/**
 * Of pictures, RGBA of one size, at least two: the mean, RGBA, and the standard deviation of each pixel in levels of 255
 * (n - 1 in the denominator; of colours, the root of the mean square of the three).
 */
export function statistics(pictures) {
  const n = pictures.length, pixels = pictures[0].length / 4;
  const mean = new Uint8ClampedArray(4 * pixels).fill(255), spread = new Float64Array(pixels);
  for (let at = 0; at < pixels; at++) {
    let squares = 0;
    for (let channel = 0; channel < 3; channel++) {
      const values = pictures.map((rgba) => rgba[4 * at + channel]);
      const middle = values.reduce((sum, value) => sum + value, 0) / n;
      mean[4 * at + channel] = Math.round(middle);
      squares += values.reduce((sum, value) => sum + (value - middle) ** 2, 0) / (n - 1);
    }
    spread[at] = Math.sqrt(squares / 3);
  }
  return { mean, spread };
}

/** RGBA of a value in [0, 1] on the scale. */
export function colourOf(value) {
  const place = Math.min(1, Math.max(0, value)) * (STOPS.length - 1), low = Math.min(Math.floor(place), STOPS.length - 2);
  return [...STOPS[low].map((from, i) => Math.round(from + (place - low) * (STOPS[low + 1][i] - from))), 255];
}

const pictureOf = (values) => new Uint8ClampedArray([...values].flatMap((value) => colourOf(value)));

/** An element, and `show(images, side, said)` once they are there; said: a sentence below. */
export function summary() {
  const whole = element("div", { class: "player summary", hidden: true });
  const figure = (encoded, title, name, ...more) => element(
    "figure", {}, element("img", { src: dataUrl(encoded), alt: title }),
    element("figcaption", {}, element("span", { class: "name" }, title), ...more,
      element("span", { class: "own" }, button("Save", () => save(new Blob([bytesOf(encoded)], { type: "image/png" }), name), { "aria-label": `Save ${title}` }))),
  );
  return {
    element: whole,
    async show(images, side, said) {
      if (images.length < 2) return;
      const { mean, spread } = statistics(await Promise.all(images.map((image) => pixelsOf(image.encoded, side))));
      const most = spread.reduce((a, b) => Math.max(a, b)), scale = Array.from({ length: 64 * 64 }, (_, i) => (i % 64) / 63);
      const name = `fewstep-${images[0].seed}`;
      const bar = element("img", { class: "scale", src: dataUrl(encode(pictureOf(scale), 64)), alt: "" });
      whole.replaceChildren(
        figure(encode(mean, side), `Mean of ${images.length}`, `${name}-mean.png`),
        figure(encode(pictureOf(spread.map((value) => value / (most || 1))), side), "Spread: the standard deviation of each pixel", `${name}-spread.png`,
          element("span", { class: "key" }, "0", bar, `${most.toFixed(1)} of 255`)),
        element("p", { class: "hint" }, said),
      );
      whole.hidden = false;
    },
  };
}
