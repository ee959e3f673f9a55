// Elements in one expression.

export const $ = (id) => document.getElementById(id);

/** An element; properties are set as such, except "class", "aria-..." and "role", which are attributes. */
export function element(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined || value === null) continue;
    if (name === "class" || name === "role" || name === "for" || name.startsWith("aria-")) made.setAttribute(name, value);
    else made[name] = value;
  }
  made.append(...children);
  return made;
}

export const button = (text, onclick, properties = {}) => element("button", { type: "button", onclick, ...properties }, text);
