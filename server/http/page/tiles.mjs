// One image of the session: its picture, which sharpens while it is made, and what one can do with it.

import { button, element } from "./dom.mjs";
import { bytesOf, dataUrl, save } from "./picture.mjs";
import { plural } from "./words.mjs";

export const nameOf = (image) => image.className ?? (image.label === null ? "image" : `class ${image.label}`);

/** In words: Bag, seed 7, 4 steps. */
export const describeImage = (image) => [
  nameOf(image), `seed ${image.seed}`, plural(image.steps, "step"),
  ...(image.body.guidance === undefined ? [] : [`guidance ${image.body.guidance}`]),
  ...(image.mix === undefined ? [] : [`${Math.round(100 * image.mix)} % of the way to seed ${image.body.seed_to}`]),
  ...(image.how ? [image.how] : []),
].join(", ");

export function fileNameOf(image) {
  const mix = image.mix === undefined ? null : `mix-${String(Math.round(1000 * image.mix)).padStart(4, "0")}`;
  const weight = image.body.guidance === undefined ? null : `guidance-${image.body.guidance}`;
  return `${[image.model, image.seed, `${image.steps}-steps`, weight, mix, image.how].filter(Boolean).join("-")}.png`;
}

export const saveImage = (image) => save(new Blob([bytesOf(image.encoded)], { type: "image/png" }), fileNameOf(image));

/** A tile that waits for its image. actions: { zoom, edit, reuse } take the image; edit: null where none is possible. */
export class Tile {
  constructor(actions, above = null) {
    this.actions = actions;
    this.image = null;
    this.picture = element("img", { alt: "", hidden: true });
    this.progress = element("span", { class: "progress", "aria-hidden": "true" });
    this.view = button("", () => actions.zoom(this.image), { class: "view", disabled: true, "aria-label": "Not made yet" });
    this.view.append(this.picture, this.progress);
    this.caption = element("figcaption");
    this.element = element("figure", { class: "tile pending" }, ...(above ? [above] : []), this.view, this.caption);
  }

  /** The denoised image of a network call that is not the last. */
  preview(encoded, call, calls) {
    this.picture.src = dataUrl(encoded);
    this.picture.hidden = false;
    this.progress.textContent = `${call}/${calls}`;
  }

  finish(image) {
    const said = describeImage(image);
    this.image = image;
    this.picture.src = dataUrl(image.encoded);
    this.picture.hidden = false;
    this.picture.alt = said;
    this.progress.remove();
    this.view.disabled = false;
    this.view.setAttribute("aria-label", `Enlarge ${said}`);
    this.element.classList.remove("pending");
    const seed = button(String(image.seed), () => this.actions.reuse(image), {
      class: "seed", title: "Use this seed again", "aria-label": `Use seed ${image.seed} again`,
    });
    const own = [button("Save", () => saveImage(image), { "aria-label": `Save ${said}` })];
    if (this.actions.edit) own.unshift(button("Edit", () => this.actions.edit(image), { "aria-label": `Edit ${said}` }));
    const more = image.mix === undefined ? image.how : `${Math.round(100 * image.mix)} %`;
    const name = element("span", { class: "name" }, [nameOf(image), more].filter(Boolean).join(", "));
    this.caption.replaceChildren(name, seed, element("span", { class: "own" }, ...own));
  }
}
