// Seeds: whole numbers from 0 to 2^63 - 1, as BigInt, because JavaScript's numbers are exact only below 2^53.

export const LAST_SEED = 2n ** 63n - 1n;
const MASK = 2n ** 64n - 1n;

/** The seed that a text names; null where it names none. */
export function parseSeed(text) {
  const trimmed = text.trim();
  if (!/^\d{1,19}$/.test(trimmed)) return null;
  const seed = BigInt(trimmed);
  return seed <= LAST_SEED ? seed : null;
}

/** A new seed, short enough to be written down. */
export function drawSeed() {
  return BigInt(crypto.getRandomValues(new Uint32Array(1))[0]);
}

/** The seed of a place of a world: SplitMix64's finalizer over the world's seed, then i, then j. */
export function seedAt(world, i, j) {
  return mix(mix(mix(world) ^ BigInt.asUintN(64, BigInt(i))) ^ BigInt.asUintN(64, BigInt(j))) & LAST_SEED;
}

function mix(value) {
  let z = (value + 0x9e3779b97f4a7c15n) & MASK;
  z = ((z ^ (z >> 30n)) * 0xbf58476d1ce4e5b9n) & MASK;
  z = ((z ^ (z >> 27n)) * 0x94d049bb133111ebn) & MASK;
  return z ^ (z >> 31n);
}
