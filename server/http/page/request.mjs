// The body of POST /v1/generate, as an object whose seeds are BigInt, and as JSON.

/** JSON of an object; fields that are null or undefined are left out. */
export function toJson(body) {
  const fields = Object.entries(body).filter(([, value]) => value !== null && value !== undefined);
  return `{${fields.map(([name, value]) => `${JSON.stringify(name)}: ${text(value)}`).join(", ")}}`;
}

const text = (value) => (typeof value === "bigint" ? String(value) : JSON.stringify(value));

/** The body that makes one of a request's images alone. */
export function bodyOfOne(body, image) {
  const { n, ...rest } = body;
  return { ...rest, seed: image.seed, label: image.className ?? image.label, mix: body.seed_to === undefined ? undefined : image.mix };
}
