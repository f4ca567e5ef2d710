// The server's LoRAs: each with a switch and how strong it is. A set is sent whole when a switch or a slider is let go.

import { fill, make } from "./widgets.js";

const STRONGEST = 1.5;

export class Loras {
  /** changed: called with [{name, scale}] of those that are on. */
  constructor({ place, changed }) {
    Object.assign(this, { place, changed, rows: new Map() });
  }

  /** The names that the server has. */
  describe(names) {
    this.rows = new Map();
    this.place.replaceChildren(...names.map((name, i) => {
      const on = make("input", { id: `lora-${i}`, type: "checkbox" });
      const range = make("input", {
        id: `lora-scale-${i}`, type: "range", min: 0, max: STRONGEST, step: 0.05, value: 1, "aria-label": `${name}: how strong`,
      });
      const output = make("output", { for: range.id });
      const tell = () => {
        fill(range);
        output.textContent = Number(range.value).toFixed(2);
      };
      range.addEventListener("input", tell);
      range.addEventListener("change", () => {
        on.checked = Number(range.value) > 0;
        this.#send();
      });
      on.addEventListener("change", () => {
        if (on.checked && Number(range.value) === 0) range.value = 1;
        tell();
        this.#send();
      });
      this.rows.set(name, { on, range, tell });
      tell();
      return make("div", { class: "lora" }, on, make("label", { for: on.id }, name), output, range);
    }));
  }

  /** What the session has. */
  show(set) {
    const scales = new Map((set ?? []).map(({ name, scale }) => [name, scale ?? 1]));
    for (const [name, { on, range, tell }] of this.rows) {
      on.checked = scales.has(name) && scales.get(name) !== 0;
      if (scales.has(name) && range !== document.activeElement) range.value = scales.get(name);
      tell();
    }
  }

  #send() {
    const on = [...this.rows].filter(([, row]) => row.on.checked);
    this.changed(on.map(([name, row]) => ({ name, scale: Number(row.range.value) })));
  }
}
