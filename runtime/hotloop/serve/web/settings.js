// What the avatar looks like: the session's settings, as fields of the sheet "Look".
//
// Words are sent when they are drawn (Enter, or the button), all else as it is moved. The session answers each change
// with its new version or with one line; a refused field shows again what the session kept.

import { Loras } from "./loras.js";
import { $, all, choice, fill, make, throttled, toast } from "./widgets.js";

const WORDS = ["prompt", "negative_prompt"];
const MOOD = /(,\s*|\b)(smiling|happy|angry|cold|sad|crying|surprised|neutral|calm)\b[ ]*/g;
const DRAWING = "Drawing …";
const EVERY = 60; // ms between two changes of a slider
// What the page sets by itself, or what would pull the picture from under it.
const HIDDEN = new Set([
  "width", "height", "num_images_per_prompt", "compatible", "upscale", "alpha", "guidance_rescale", "sampler_options",
  "lora",
]);
const NAMES = {
  cfg_type: "Kind of guidance", delta: "Weight of its other side", similarity: "Skip pictures this alike",
  similarity_most: "Skipped in a row at most", drift: "Drift of a dream", sampler: "Sampler", rng: "Noise",
  prompt_syntax: "Reading of the words", long_prompt: "Long prompts", clip_skip: "CLIP skip", resize_mode: "Fitting pictures in",
  blend: "Frames of a change",
};
const title = (name) => NAMES[name] ?? name.replaceAll("_", " ").replace(/^./, (letter) => letter.toUpperCase());

export class Settings {
  constructor({ wire, sheet }) {
    Object.assign(this, { wire, sheet, rest: {}, known: {}, asked: {}, pending: new Map(), version: 0, seen: 0, marks: new Map() });
    const given = {};
    const soon = throttled(EVERY, () => this.#send(given));
    this.later = (name, value) => {
      given[name] = value;
      soon();
    };
    sheet.addEventListener("submit", (event) => {
      event.preventDefault();
      this.draw();
    });
    for (const name of WORDS) {
      const field = this.#field(name);
      field.addEventListener("input", () => this.#ready());
      field.addEventListener("keydown", (event) => {
        if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
        event.preventDefault();
        this.draw();
      });
    }
    for (const field of all("[data-setting]", sheet)) this.#bind(field);
    this.loras = new Loras({ place: $("#loras"), changed: (lora) => this.#send({ lora }) });
    $("#dice").addEventListener("click", () => this.roll());
  }

  /** The fields that this server has: its schema's. */
  describe({ settings: schema }) {
    const properties = schema?.properties ?? {};
    this.rest = Object.fromEntries(Object.entries(properties).map(([name, one]) => [name, one.default]));
    for (const field of all("[data-needs]", this.sheet)) field.hidden = !(field.dataset.needs in properties);
    this.loras.describe(properties.lora?.items.properties.name.enum ?? []);
    const shown = new Set(all("[data-setting]", this.sheet).filter((one) => !one.closest("#finer")).map((one) => one.dataset.setting));
    const finer = $("#finer");
    finer.replaceChildren();
    for (const [name, one] of Object.entries(properties)) {
      const field = shown.has(name) || HIDDEN.has(name) ? null : this.#made(name, one);
      if (field) finer.append(field);
    }
    $(".finer").hidden = !finer.children.length;
  }

  /** What the session has now. */
  take(settings, version) {
    this.known = { ...settings };
    this.version = version;
    for (const field of all("[data-setting]", this.sheet)) this.#show(field);
    this.loras.show(settings.lora);
    this.#ready();
  }

  /** The session answered: {settings, version, id} or {line, id}. */
  answer({ settings, version, id, line }) {
    const asked = this.pending.get(id) ?? {};
    this.pending.delete(id);
    const told = $("#told");
    told.classList.toggle("bad", Boolean(line));
    if (line) {
      for (const name of Object.keys(asked)) delete this.asked[name];
      told.textContent = line;
      toast(line);
      for (const field of all("[data-setting]", this.sheet)) if (field.dataset.setting in asked) this.#show(field);
      if ("lora" in asked) this.loras.show(this.known.lora);
      this.#ready();
    } else {
      this.take(settings, version);
      told.textContent = DRAWING;
      this.drawn(this.seen);
    }
  }

  /** A frame of this version is shown. */
  drawn(version) {
    this.seen = version;
    const told = $("#told");
    if (told.textContent === DRAWING && version >= this.version && !this.pending.size) told.textContent = "It is there.";
  }

  /** Sends the words, if they are others. */
  draw() {
    const given = {};
    for (const name of WORDS) {
      const value = this.#field(name).value.trim();
      if (value !== (this.known[name] ?? "")) given[name] = value;
    }
    if (Object.keys(given).length) this.#send(given);
  }

  /** An expression in words, at the prompt's end: for sessions that no controls move. */
  express(name) {
    const field = this.#field("prompt");
    const bare = field.value.replace(MOOD, "").trim();
    field.value = name === "neutral" ? bare : `${bare}, ${name}`;
    this.draw();
  }

  roll() {
    const field = this.#field("seed");
    field.value = String(Math.floor(Math.random() * 2 ** 32));
    this.#send({ seed: Number(field.value) });
  }

  /** A session that is new knows nothing of what was asked for before: ask again. */
  again() {
    if (Object.keys(this.asked).length) this.#send({ ...this.asked });
  }

  #field(name) {
    return $(`[data-setting="${name}"]`, this.sheet);
  }

  #send(given) {
    const changes = { ...given };
    for (const name of Object.keys(given)) delete given[name];
    if (!Object.keys(changes).length) return;
    Object.assign(this.asked, changes);
    const id = this.wire.set(changes);
    if (!id) return; // asked again when the session is back
    this.pending.set(id, changes);
    if (WORDS.some((name) => name in changes)) $("#told").textContent = DRAWING;
  }

  #ready() {
    const other = WORDS.some((name) => this.#field(name).value.trim() !== (this.known[name] ?? ""));
    $("#draw").disabled = !other || !this.#field("prompt").value.trim();
  }

  #bind(field) {
    const name = field.dataset.setting;
    if (WORDS.includes(name)) return;
    if (field.classList.contains("segments")) {
      this.marks.set(field, choice(field, {
        chosen: (button) => {
          this.marks.get(field)(button);
          this.#send({ [name]: Number(button.value) });
        },
      }));
    } else if (field.type === "range") {
      field.addEventListener("input", () => {
        this.#told(field);
        this.later(name, Number(field.value));
      });
    } else {
      field.addEventListener("change", () => this.#send({ [name]: this.#value(field) }));
    }
    field.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && field.tagName === "INPUT") {
        event.preventDefault();
        field.dispatchEvent(new Event("change"));
      }
    });
  }

  #value(field) {
    if (field.type === "checkbox") return field.checked;
    if (field.dataset.type === "number" || field.dataset.setting === "seed") return Number(field.value);
    return field.value;
  }

  #show(field) {
    const name = field.dataset.setting;
    const value = this.known[name] ?? this.rest[name];
    if (field === document.activeElement && (WORDS.includes(name) || field.type === "range")) return;
    if (field.classList.contains("segments")) {
      this.marks.get(field)(all("button", field).find((one) => Number(one.value) === value) ?? null);
    } else if (field.type === "checkbox") {
      field.checked = Boolean(value);
    } else if (value !== undefined) {
      const shown = Array.isArray(value) ? value[0] : value;
      field.value = shown ?? "";
      if (field.type === "range") this.#told(field);
    } else if (field.type === "range") {
      field.value = field.min;
      fill(field);
      $("output", field.parentElement).textContent = "the model’s own";
    }
  }

  #told(range) {
    fill(range);
    const output = $("output", range.parentElement);
    if (output) output.textContent = range.id === "strength" ? `${Math.round(100 * range.value)} %` : Number(range.value).toFixed(1);
  }

  /** A field of the schema as the sheet shows it; null for what has no plain form. */
  #made(name, { type, enum: of, minimum, maximum, description, default: rest }) {
    const id = `set-${name}`;
    let field;
    if (of) field = make("select", { id }, ...of.map((value) => make("option", { value }, String(value))));
    else if (type === "boolean") field = make("input", { id, type: "checkbox" });
    else if (type === "integer" || type === "number") {
      const step = type === "integer" ? 1 : "any";
      field = make("input", { id, type: "text", inputmode: "decimal", "data-type": "number", min: minimum, max: maximum, step });
    } else if (type === "string") field = make("input", { id, type: "text" });
    else return null;
    if (type === "integer" || type === "number") field.dataset.type = "number";
    field.dataset.setting = name;
    if (rest !== undefined && field.type !== "checkbox") field.value = rest;
    this.#bind(field);
    return make("div", { class: "field" }, make("label", { for: id }, title(name)), field, make("small", {}, description ?? ""));
  }
}
