// What the avatar does: expressions, motions, sliders, the pointer. Values go to the session at most once a frame.

import { $, choice, fill, icon, make } from "./widgets.js";
import { now } from "./wire.js";

export const EXPRESSIONS = ["happy", "angry", "cold", "sad", "surprised", "neutral"];
const KEYS = "QWEYUIOZ"; // of motions

// The main sliders: what a row is called, and the controls that it moves.
const GROUPS = [
  ["Head", [["Turn", ["headYaw"]], ["Nod", ["headPitch"]], ["Tilt", ["headRoll"]]]],
  ["Eyes", [
    ["Look aside", ["gazeX"]], ["Look up", ["gazeY"]], ["Close", ["eyeBlinkLeft", "eyeBlinkRight"]],
    ["Widen", ["eyeWideLeft", "eyeWideRight"]],
  ]],
  ["Mouth", [["Open", ["jawOpen"]], ["Smile", ["mouthSmileLeft", "mouthSmileRight"]], ["Pout", ["mouthPucker"]]]],
  ["Brows", [["Raise", ["browInnerUp", "browOuterUpLeft", "browOuterUpRight"]], ["Frown", ["browDownLeft", "browDownRight"]]]],
  ["Feeling", [["Blush", ["blush"]], ["Tears", ["tear"]]]],
];
const REACH = { headYaw: 25, headPitch: 12, headRoll: 20 }; // degrees: what looks natural
const UNITS = { degrees: "°", cm: " cm" };

export class Face {
  /**
   * wire    where it goes
   * stage   where the pointer is followed over the avatar
   * words   called with an expression where the session draws from words alone
   */
  constructor({ wire, stage, avatar, words }) {
    Object.assign(this, { wire, stage, avatar, words, moves: true, waiting: {}, due: false, held: {}, expression: null, rows: new Map() });
    const faces = $("#faces");
    faces.append(...EXPRESSIONS.map((name, i) =>
      make("button", { type: "button", class: "face", role: "radio", "aria-checked": "false", "data-name": name, tabindex: i ? -1 : 0 },
        icon(name), make("span", {}, name[0].toUpperCase() + name.slice(1)), make("kbd", { "aria-hidden": "true" }, String(i + 1))),
    ));
    this.mark = choice(faces, { chosen: (button) => this.express(button.dataset.name) });
    $("#rest").addEventListener("click", () => this.rest());
    $("#pointer").addEventListener("change", (event) => this.follow(event.target.checked));
    avatar.addEventListener("pointermove", (event) => this.#aim(event));
    avatar.addEventListener("pointerdown", (event) => this.#aim(event));
    avatar.addEventListener("pointerleave", () => this.aiming && this.#let(["headYaw", "headPitch", "gazeX", "gazeY"]));
  }

  /** The controls and motions that this server has. */
  describe({ controls = [], motions = [] }) {
    this.table = new Map(controls.map((one) => [one.name, one]));
    $("#faces").hidden = !EXPRESSIONS.some((name) => this.table.has(name));
    const sheet = $("#sliders");
    sheet.replaceChildren();
    this.rows.clear();
    for (const [name, rows] of GROUPS) {
      const there = rows.filter(([, names]) => this.table.has(names[0]));
      if (there.length) {
        sheet.append(make("div", { class: "group", role: "group", "aria-label": name }, make("h3", {}, name), ...there.map((row) => this.#slider(...row))));
      }
    }
    this.motions = motions.map((name, i) => ({ name, key: KEYS[i] ?? "" }));
    $("#motions").replaceChildren(...this.motions.map(({ name, key }) =>
      make("button", { type: "button", class: "chip", "data-motion": name, onclick: () => this.play(name) },
        name, ...(key ? [make("kbd", { "aria-hidden": "true" }, key)] : [])),
    ));
  }

  /** A session that is new knows nothing of what is held: say it again. */
  again() {
    if (this.expression) this.wire.send({ t: now(), expression: this.expression });
    this.put(this.held);
  }

  /** The same one again is neutral. */
  express(asked) {
    const name = asked === this.expression ? "neutral" : asked;
    this.expression = name;
    if (!this.moves) this.words(name);
    this.mark($(`[data-name="${name}"]`, $("#faces")));
    this.wire.send({ t: now(), expression: name });
  }

  play(name) {
    if (!this.wire.send({ play: name })) return;
    const chip = $(`[data-motion="${name}"]`);
    chip?.classList.add("playing");
    setTimeout(() => chip?.classList.remove("playing"), 1200);
  }

  /** Values by control; those of one turn of the page go together. */
  put(values) {
    Object.assign(this.waiting, values);
    if (this.due || !Object.keys(this.waiting).length) return;
    this.due = true;
    setTimeout(() => {
      this.due = false;
      this.wire.send({ t: now(), controls: this.waiting });
      this.waiting = {};
    }, 8);
  }

  /** Everything that the page holds lives by itself again. */
  rest() {
    this.#let(Object.keys(this.held));
    for (const row of this.rows.values()) this.#freed(row);
    if (this.expression) this.express("neutral");
  }

  follow(on) {
    this.aiming = on;
    $("#pointer").checked = on;
    this.stage.classList.toggle("aiming", on);
    if (!on) this.#let(["headYaw", "headPitch", "gazeX", "gazeY"]);
  }

  #let(names) {
    const held = names.filter((name) => name in this.held);
    for (const name of held) delete this.held[name];
    if (held.length) this.put(Object.fromEntries(held.map((name) => [name, null])));
  }

  #hold(values) {
    Object.assign(this.held, values);
    this.put(values);
  }

  #aim(event) {
    if (!this.aiming) return;
    const box = this.avatar.getBoundingClientRect();
    const x = Math.min(Math.max((2 * (event.clientX - box.left)) / box.width - 1, -1), 1);
    const y = Math.min(Math.max(1 - (2 * (event.clientY - box.top)) / box.height, -1), 1);
    this.#hold({ headYaw: 22 * x, headPitch: 10 * y, gazeX: 0.8 * x, gazeY: 0.7 * y });
  }

  #slider(name, names) {
    const { unit, ...one } = this.table.get(names[0]);
    const reach = REACH[names[0]];
    const [low, high] = [Math.max(one.min, -(reach ?? Infinity)), Math.min(one.max, reach ?? Infinity)];
    const id = `control-${names[0]}`;
    const range = make("input", { type: "range", id, min: low, max: high, step: (high - low) / 200, value: 0 });
    const output = make("output", { for: id }, "");
    const free = make("button", { type: "button", class: "icon", "aria-label": `Let go of ${name}`, title: "Let it live by itself" }, icon("back"));
    const row = make("div", { class: "slide" }, make("label", { for: id }, name), range, output, free);
    const show = () => {
      fill(range);
      output.textContent = unit === "degrees" || reach ? `${Math.round(range.value)}${UNITS.degrees}` : Number(range.value).toFixed(2);
    };
    range.addEventListener("input", () => {
      row.classList.add("held");
      show();
      this.#hold(Object.fromEntries(names.map((each) => [each, Number(range.value)])));
    });
    const release = () => {
      this.#let(names);
      this.#freed({ row, range, show });
      range.focus();
    };
    free.addEventListener("click", release);
    range.addEventListener("dblclick", release);
    range.addEventListener("keydown", (event) => {
      if (event.key === "Delete" || event.key === "Backspace") release();
    });
    show();
    this.rows.set(names[0], { row, range, show });
    return row;
  }

  #freed({ row, range, show }) {
    row.classList.remove("held");
    range.value = 0;
    show();
  }
}
