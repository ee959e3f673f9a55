// Pictures: between files, base64 and pixels.

import { Refused } from "./words.mjs";

const MOST_BYTES = 64 * 2 ** 20;

export const dataUrl = (encoded) => `data:image/png;base64,${encoded}`;

export const bytesOf = (encoded) => Uint8Array.from(atob(encoded), (character) => character.charCodeAt(0));

function canvasOf(side) {
  const canvas = document.createElement("canvas");
  canvas.width = canvas.height = side;
  return canvas.getContext("2d", { willReadFrequently: true });
}

/** RGBA of a PNG, which is of this side. */
export async function pixelsOf(encoded, side) {
  const bitmap = await createImageBitmap(new Blob([bytesOf(encoded)], { type: "image/png" }), { colorSpaceConversion: "none" });
  const context = canvasOf(side);
  context.drawImage(bitmap, 0, 0);
  return context.getImageData(0, 0, side, side).data;
}

/** A canvas of RGBA. */
export function drawn(rgba, side) {
  const context = canvasOf(side);
  context.putImageData(new ImageData(rgba, side, side), 0, 0);
  return context.canvas;
}

/** A PNG of RGBA, as base64. */
export const encode = (rgba, side) => drawn(rgba, side).toDataURL("image/png").split(",")[1];

/**
 * RGBA of a file of any format the browser reads and any size: upright, the square in its middle, scaled to the side.
 * channels 1: gray. flat: on white, as the API takes no transparency; else with its alpha, which a mask needs.
 */
export async function fitted(file, side, { channels = 3, flat = true } = {}) {
  if (file.size > MOST_BYTES) throw new Refused(`“${file.name}” is larger than 64 MB; open a smaller picture.`);
  let bitmap;
  try {
    bitmap = await createImageBitmap(file);
  } catch {
    throw new Refused(`“${file.name}” is not a picture that this browser can read.`);
  }
  const square = Math.min(bitmap.width, bitmap.height);
  const left = Math.floor((bitmap.width - square) / 2), top = Math.floor((bitmap.height - square) / 2);
  const context = canvasOf(side);
  if (flat) {
    context.fillStyle = "white";
    context.fillRect(0, 0, side, side);
  }
  context.imageSmoothingEnabled = square !== side;
  context.imageSmoothingQuality = "high";
  context.drawImage(bitmap, left, top, square, square, 0, 0, side, side);
  bitmap.close();
  const rgba = context.getImageData(0, 0, side, side).data;
  if (channels === 1 && flat) toGray(rgba);
  return rgba;
}

/** ITU-R 601-2 luma, as the server's. */
export const grayOf = (red, green, blue) => Math.round(0.299 * red + 0.587 * green + 0.114 * blue);

function toGray(rgba) {
  for (let i = 0; i < rgba.length; i += 4) {
    rgba.fill(grayOf(rgba[i], rgba[i + 1], rgba[i + 2]), i, i + 3);
  }
}

/** Save something under a name, as a click on a link does. */
export function save(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}
