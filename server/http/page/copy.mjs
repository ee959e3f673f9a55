// "Copy as": a request as a program, shown and put on the clipboard.

import { hasKey } from "./client.mjs";
import { button, element } from "./dom.mjs";
import { LANGUAGES, snippet } from "./snippets.mjs";

/** A row of buttons and the program of the one that was pressed. bodyNow: returns the request, or throws Refused. */
export function copyPanel(bodyNow) {
  const code = element("pre", { class: "code", tabIndex: 0, hidden: true, role: "region", "aria-label": "Program" });
  const said = element("p", { class: "hint", role: "status" });
  const press = async (language) => {
    try {
      code.textContent = snippet(language, bodyNow(), new URL(".", location.href).href.replace(/\/$/, ""), hasKey());
    } catch (error) {
      code.hidden = true;
      said.textContent = error.message;
      return;
    }
    code.hidden = false;
    said.textContent = (await copied(code)) ? `${language}: copied.` : `${language}: select the text to copy it.`;
  };
  const buttons = LANGUAGES.map((language) => button(language, () => press(language), { "aria-label": `Copy as ${language}` }));
  const clear = () => {
    code.hidden = true;
    said.textContent = "";
  };
  return { panel: element("div", { class: "copy" }, element("p", { class: "lead" }, "Copy as"), element("div", { class: "row" }, ...buttons), said, code), clear };
}

async function copied(code) {
  try {
    await navigator.clipboard.writeText(code.textContent);  // absent where the page did not come by https or loopback
    return true;
  } catch {
    getSelection().selectAllChildren(code);
    return false;
  }
}
