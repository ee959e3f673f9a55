// An image in large, in a dialog: arrow keys go to its neighbours, Escape closes it.

import { copyPanel } from "./copy.mjs";
import { $ } from "./dom.mjs";
import { dataUrl } from "./picture.mjs";
import { bodyOfOne } from "./request.mjs";
import { describeImage, saveImage } from "./tiles.mjs";

let images = [], at = 0, actions = null;
const copy = copyPanel(() => bodyOfOne(images[at].body, images[at]));

/** chosen: one of a batch's images. actions: { edit, reuse }; edit: null where none is possible. */
export function enlarge(chosen, all, given) {
  [images, at, actions] = [all, all.indexOf(chosen), given];
  show();
  if (!$("viewer").open) $("viewer").showModal();
}

function show() {
  const image = images[at];
  copy.clear();
  $("viewer-image").src = dataUrl(image.encoded);
  $("viewer-image").alt = describeImage(image);
  $("viewer-title").textContent = describeImage(image);
  $("viewer-place").textContent = images.length > 1 ? `${at + 1} of ${images.length}` : "";
  $("viewer-before").disabled = at === 0;
  $("viewer-next").disabled = at === images.length - 1;
  $("viewer-edit").hidden = !actions.edit;
}

function go(by) {
  at = Math.min(images.length - 1, Math.max(0, at + by));
  show();
}

function leaving(what) {
  return () => {
    $("viewer").close();
    what(images[at]);
  };
}

export function prepareViewer() {
  $("viewer-copy").append(copy.panel);
  $("viewer-before").addEventListener("click", () => go(-1));
  $("viewer-next").addEventListener("click", () => go(1));
  $("viewer-reuse").addEventListener("click", leaving((image) => actions.reuse(image)));
  $("viewer-edit").addEventListener("click", leaving((image) => actions.edit(image)));
  $("viewer-save").addEventListener("click", () => saveImage(images[at]));
  $("viewer-close").addEventListener("click", () => $("viewer").close());
  $("viewer").addEventListener("click", (event) => { if (event.target === $("viewer")) $("viewer").close(); });
  $("viewer").addEventListener("keydown", (event) => {
    if (event.target.closest("pre, input")) return;
    if (event.key === "ArrowLeft") go(-1);
    else if (event.key === "ArrowRight") go(1);
    else return;
    event.preventDefault();
  });
}
