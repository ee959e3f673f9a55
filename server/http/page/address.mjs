// The form's values in the page's address, so that a link shows the same images.

import { parseSeed } from "./seeds.mjs";

export const VIEWS = ["images", "strip", "between", "map"];

/** What an address says; what it does not say, or says wrongly, is undefined. */
export function fromAddress(search) {
  const given = new URLSearchParams(search);
  const number = (name, form = /^-?\d{1,9}$/) => (form.test(given.get(name) ?? "") ? Number(given.get(name)) : undefined);
  const view = given.get("view");
  return {
    view: VIEWS.includes(view) ? view : undefined,
    model: given.get("model") ?? undefined,
    steps: number("steps"),
    label: given.get("class") ?? undefined,
    guidance: number("guidance", /^\d{1,3}(\.\d{1,6})?$/),
    seed: parseSeed(given.get("seed") ?? "") ?? undefined,
    seedTo: parseSeed(given.get("to") ?? "") ?? undefined,
    fresh: given.get("keep") === null ? undefined : false,
    count: number("n"),
    x: number("x"),
    y: number("y"),
  };
}

/**
 * The address of some values, from its question mark on. label: the class's name, or its number; "" is any. guidance:
 * undefined for the model's own.
 */
export function toAddress({ view, model, steps, label, guidance, seed, seedTo, fresh, count, x, y }) {
  const fields = {
    view: view === "images" ? undefined : view,
    model,
    steps: view === "strip" ? undefined : steps,
    class: label === "" ? undefined : label,
    guidance,
    seed,
    to: view === "between" ? seedTo : undefined,
    n: view === "images" || view === "between" ? count : undefined,
    keep: view === "map" || fresh ? undefined : 1,
    x: view === "map" ? x : undefined,
    y: view === "map" ? y : undefined,
  };
  const said = Object.entries(fields).filter(([, value]) => value !== undefined && value !== null);
  return `?${new URLSearchParams(said.map(([name, value]) => [name, String(value)]))}`;
}
