// What was made in this session, the newest first. Nothing replaces what came before.

import { $, button, element } from "./dom.mjs";
import { bytesOf, save } from "./picture.mjs";
import { Tile, fileNameOf } from "./tiles.mjs";
import { zipOf } from "./zip.mjs";

/**
 * One press of a button and its images. title: in words. actions: { zoom, edit, reuse, settings }; zoom takes an image
 * and all images of its batch. headings: an element above each tile, or none. Its tiles wait for `preview` and `finish`.
 */
export class Batch {
  constructor({ title, count, actions, headings = [], player = null }) {
    const zoom = (image) => actions.zoom(image, this.images);
    this.tiles = Array.from({ length: count }, (_, i) => new Tile({ ...actions, zoom }, headings[i] ?? null));
    this.title = element("h2", {}, title);
    this.meta = element("p", { class: "meta" });
    this.all = button("Download all", () => this.#download(), { title: "A zip of these images", "aria-label": `Download all: ${title}` });
    const again = button("Use these settings", actions.settings, { "aria-label": `Use these settings: ${title}` });
    const remove = button("Remove", () => this.#remove(), { "aria-label": `Remove: ${title}` });
    this.grid = element("div", { class: headings.length ? "grid strip" : "grid" }, ...this.tiles.map((tile) => tile.element));
    this.element = element(
      "section", { class: player ? "batch film" : "batch", "aria-label": title },
      element("div", { class: "head" }, element("div", {}, this.title, this.meta), element("div", { class: "row" }, again, this.all, remove)),
      ...(player ? [player] : []), this.grid,
    );
    this.all.hidden = true;
    $("history").prepend(this.element);
    $("empty").hidden = true;
  }

  /** Finished ones, in order. */
  get images() {
    return this.tiles.map((tile) => tile.image).filter((image) => image !== null);
  }

  /** No more will come: tiles that wait go; a batch without any image goes with them. */
  end(meta) {
    for (const tile of this.tiles) if (tile.image === null) tile.element.remove();
    this.meta.textContent = meta;
    this.all.hidden = this.images.length < 2;
    if (this.images.length === 0) this.#remove();
  }

  #download() {
    const names = new Set();
    const files = this.images.map((image, i) => {
      const name = names.has(fileNameOf(image)) ? `${i}-${fileNameOf(image)}` : fileNameOf(image);
      names.add(name);
      return { name: name.replace(/[^\x20-\x7e]/g, "_"), bytes: bytesOf(image.encoded) };
    });
    save(new Blob([zipOf(files)], { type: "application/zip" }), `fewstep-${this.images[0].seed}.zip`);
  }

  #remove() {
    const held = this.element.contains(document.activeElement);
    this.element.remove();
    $("empty").hidden = $("history").children.length > 0;
    if (held) $("go").focus();
  }
}
