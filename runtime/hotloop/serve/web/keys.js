// The keyboard: single keys while nobody writes; the list of them is what the dialog shows.

import { $, make } from "./widgets.js";

const KEPT = "hotloop-keys";
const WRITES = "textarea, select, [contenteditable], input:not([type=checkbox]):not([type=range])";

export class Keys {
  constructor() {
    this.table = [];
    this.single = $("#single");
    try {
      this.single.checked = localStorage.getItem(KEPT) !== "off";
      this.single.addEventListener("change", () => localStorage.setItem(KEPT, this.single.checked ? "on" : "off"));
    } catch {
      // Storage is off: it holds for this visit.
    }
    document.addEventListener("keydown", (event) => this.#press(event));
    const dialog = $("#keys-dialog");
    $("#keys").addEventListener("click", () => this.#list(dialog));
    this.add("?", "This list", () => this.#list(dialog));
  }

  /** key: what the event says; label: for the list, "" for none. */
  add(key, label, run) {
    this.table = [...this.table.filter((one) => one.key !== key), { key, label, run }];
  }

  #press(event) {
    const { target } = event;
    if (event.key === "Escape" && target.matches?.(WRITES)) target.blur();
    if (!this.single.checked || event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
    if (target.matches?.(WRITES) || $("dialog[open]")) return;
    const one = this.table.find(({ key }) => key === event.key || key === event.key.toUpperCase());
    if (!one) return;
    event.preventDefault();
    one.run();
  }

  #list(dialog) {
    const named = this.table.filter(({ label }) => label);
    $("#key-list").replaceChildren(...named.map(({ key, label }) =>
      make("div", {}, make("dt", {}, make("kbd", {}, key)), make("dd", {}, label))));
    dialog.showModal();
  }
}
