// The noise of fewstep in JavaScript: fewstep/noise.py says what each number is made of.

const MULTIPLIERS = [0xd2511f53, 0xcd9e8d57];
const WEYL = [0x9e3779b9, 0xbb67ae85];
export const NOISE_VERSION = 1;
const STREAM_NOISE = 0, STREAM_LABEL = 1;

// The high half of the 64-bit product of two 32-bit integers, from products of 16 bits, which are exact.
function highProduct(a, b) {
  const [aLow, aHigh, bLow, bHigh] = [a & 0xffff, a >>> 16, b & 0xffff, b >>> 16];
  const middle = aHigh * bLow + ((aLow * bLow) >>> 16);
  const other = aLow * bHigh + (middle % 0x10000);
  return (aHigh * bHigh + Math.floor(middle / 0x10000) + Math.floor(other / 0x10000)) >>> 0;
}

// Philox 4x32-10 (Salmon et al. 2011). key: two, counter: four integers below 2^32; returns four.
export function philox(key, counter) {
  let [k0, k1] = key;
  let [c0, c1, c2, c3] = counter;
  for (let round = 0; round < 10; round += 1) {
    const high0 = highProduct(c0, MULTIPLIERS[0]);
    const high1 = highProduct(c2, MULTIPLIERS[1]);
    const low0 = Math.imul(c0, MULTIPLIERS[0]) >>> 0;
    const low1 = Math.imul(c2, MULTIPLIERS[1]) >>> 0;
    [c0, c1, c2, c3] = [(high1 ^ c1 ^ k0) >>> 0, low1, (high0 ^ c3 ^ k1) >>> 0, low0];
    k0 = (k0 + WEYL[0]) >>> 0;
    k1 = (k1 + WEYL[1]) >>> 0;
  }
  return [c0, c1, c2, c3];
}

// `count` unit normals of one image by Box and Muller's method. seed: a BigInt from 0 to 2^64 - 1; step: 0 is the
// initial noise, i the noise before network call i, counted from 0.
export function normals(seed, step, count) {
  const key = keyOf(seed);
  const out = new Float32Array(4 * Math.ceil(count / 4));
  for (let block = 0; 4 * block < count; block += 1) {
    const words = philox(key, [block, step, STREAM_NOISE, NOISE_VERSION]);
    const [u0, u1, u2, u3] = words.map((word) => ((word >>> 9) + 0.5) / 2 ** 23);
    out.set([...pair(u0, u1), ...pair(u2, u3)], 4 * block);
  }
  return out.subarray(0, count);
}

// The class of an image whose request names none.
export function randomLabel(seed, classes) {
  const [word] = philox(keyOf(seed), [0, 0, STREAM_LABEL, NOISE_VERSION]);
  return Number((BigInt(word) * BigInt(classes)) >> 32n);
}

const keyOf = (seed) => [Number(seed & 0xffffffffn), Number((seed >> 32n) & 0xffffffffn)];

function pair(u0, u1) {
  const radius = Math.sqrt(-2 * Math.log(u0));
  return [radius * Math.cos(2 * Math.PI * u1), radius * Math.sin(2 * Math.PI * u1)];
}
