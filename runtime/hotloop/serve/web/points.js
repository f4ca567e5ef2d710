// Your own picture as the avatar: ten points are put where its face is, and how that moves is seen before it is taken.
//
// What is seen is a session of its own on the server, which is given the same picture and points as, in the end, the
// page's session: there is no second way to draw it. A picture over the server's limits is made smaller here.

import { Board } from "./board.js";
import { Painter } from "./canvas.js";
import { save } from "./recorder.js";
import { Wire, now } from "./wire.js";
import { $, choice, icon, make } from "./widgets.js";

const TYPES = ["image/png", "image/jpeg", "image/webp"];
const LONGEST = 1536; // pixels a side of a picture that is made smaller
const REST = 250; // ms that points stay before they are sent
const TURN = 1400; // ms of a pose, where all are shown in turn

const POSES = [
  ["turns", "All in turn", null],
  ["rest", "Rest", {}],
  ["blink", "Blink", { eyeBlinkLeft: 1, eyeBlinkRight: 1 }],
  ["mouth", "Open mouth", { jawOpen: 0.9 }],
  ["smile", "Smile", { mouthSmileLeft: 1, mouthSmileRight: 1 }],
  ["left", "Turn left", { headYaw: -18 }],
  ["right", "Turn right", { headYaw: 18 }],
];
const MOVED = [...new Set(POSES.flatMap(([, , controls]) => Object.keys(controls ?? {})))];
const BY = {
  landmarks: "A face was found. Look closely, and move what is not right.",
  segmenter: "A face was found. Look closely, and move what is not right.",
  detector: "This is a guess. Look closely, and move what is not right.",
  given: "The rest is a guess from the eyes. Move what is not right.",
  middle: "No face was found. Press “Show the eyes” and click both of them: the rest follows.",
};

export class Points {
  /** wire: the page's; taken(name): its avatar is this now. */
  constructor({ wire, taken }) {
    this.wire = wire;
    this.taken = taken;
    this.limits = { picture_bytes: 2e6, picture_pixels: 4e6 };
    this.asked = new Map(); // ids of questions -> what is done with the answer
    this.#build();
    wire.addEventListener("avatar", ({ detail }) => this.#answered(detail));
    wire.addEventListener("refused", ({ detail }) => this.#answered(detail));
  }

  /** Whether this answer is to a question of ours. */
  owns(id) {
    return this.asked.has(id);
  }

  /** With a picture, or with the place to drop one. why: a line above it. */
  async open(file = null, why = "") {
    this.say("");
    this.why = why;
    if (!this.dialog.open) this.dialog.showModal();
    if (!file) this.#show(false);
    else await this.#read(file);
  }

  // --- What is seen ---

  #build() {
    const named = (id, label) => make("button", { type: "button", class: "button", id }, label);
    this.file = make("input", { type: "file", id: "own-file", accept: TYPES.join(","), hidden: true, tabindex: "-1", "aria-hidden": "true" });
    this.line = make("p", { class: "told", id: "points-line", role: "alert" });
    this.lead = make("p", { class: "lead", id: "points-lead", role: "status" });
    this.canvas = make("canvas", { id: "points-preview", width: 512, height: 512, role: "img", "aria-label": "How it moves" });
    this.veil = make("p", { class: "wait", id: "points-wait" }, make("span", { class: "spin", "aria-hidden": "true" }), make("span", {}, "Waking it"));
    const poses = make("div", { class: "poses", id: "points-poses", role: "radiogroup", "aria-label": "What it does" },
      ...POSES.map(([name, label]) => make("button", { type: "button", role: "radio", "data-pose": name, "aria-checked": "false", tabindex: "-1" }, label)));
    this.mark = choice(poses, { chosen: (button) => this.#pose(button.dataset.pose) });
    this.board = new Board({ changed: () => this.#changed(), eyes: (eyes) => this.#guess({ eyes }) });
    const [take, keep, other] = [named("points-take", "Use it"), named("points-save", "Save files"), named("points-other", "Another picture")];
    take.classList.add("primary");
    this.buttons = [take, keep];
    const drop = make("div", { class: "dropzone", id: "points-drop" }, icon("file"),
      make("p", {}, make("b", {}, "Drop a picture of your avatar here")),
      make("small", {}, "PNG, JPEG or WebP, drawn, painted or photographed, one face, seen from the front. A transparent ground stays transparent."),
      make("button", { type: "button", class: "button primary", id: "points-choose" }, "Choose a picture"));
    const close = make("form", { method: "dialog" }, make("button", { class: "icon close", "aria-label": "Close" }, icon("close")));
    this.work = make("div", { class: "work", id: "points-work" },
      this.board.element,
      make("div", { class: "side" },
        make("figure", { class: "mirror" }, this.canvas, this.veil),
        poses, this.board.about));
    this.drop = drop;
    this.foot = make("div", { class: "foot" }, other, make("span", { class: "gap" }), keep, take);
    this.dialog = make("dialog", { id: "points-dialog", "aria-labelledby": "points-title", "aria-describedby": "points-lead" },
      close, make("h2", { id: "points-title" }, "Your own avatar"), this.lead, drop, this.work, this.line, this.foot, this.file);
    document.body.append(this.dialog);
    drop.querySelector("button").addEventListener("click", () => this.file.click());
    other.addEventListener("click", () => this.file.click());
    this.file.addEventListener("change", () => {
      if (this.file.files[0]) this.#read(this.file.files[0]);
      this.file.value = "";
    });
    take.addEventListener("click", () => this.#take());
    keep.addEventListener("click", () => this.#save());
    this.dialog.addEventListener("close", () => this.#end());
    for (const name of ["dragover", "drop"]) {
      this.dialog.addEventListener(name, (event) => {
        event.preventDefault();
        drop.classList.toggle("over", name === "dragover");
        if (name === "drop" && event.dataTransfer.files[0]) this.#read(event.dataTransfer.files[0]);
      });
    }
    this.dialog.addEventListener("dragleave", () => drop.classList.remove("over"));
  }

  say(line) {
    this.line.textContent = line;
    this.line.classList.toggle("bad", line !== "");
  }

  #show(placing) {
    this.drop.hidden = placing;
    this.work.hidden = this.foot.hidden = !placing;
    this.lead.textContent = placing ? this.lead.textContent : this.why || "It blinks, talks, looks about and turns its head: from one picture.";
  }

  // --- The picture ---

  /** A file -> what is sent of it: itself, or smaller where the server takes no such one. */
  async #read(file) {
    this.say("");
    let picture;
    try {
      picture = await createImageBitmap(file);
    } catch {
      this.#show(false);
      this.say(`${file.name || "This"} is no picture that can be read: PNG, JPEG or WebP`);
      return;
    }
    if (Math.min(picture.width, picture.height) < 32) {
      this.say(`A picture must be 32 pixels a side at least, this has ${picture.width} × ${picture.height}`);
      return;
    }
    const { picture_bytes: bytes, picture_pixels: pixels } = this.limits;
    const fits = TYPES.includes(file.type) && file.size <= bytes && picture.width * picture.height <= pixels;
    this.sent = fits ? file : await smaller(picture, file.type === "image/jpeg" ? file.type : "image/png", bytes);
    this.name = (file.name || "avatar").replace(/\.[^.]*$/, "").slice(0, 64) || "avatar";
    this.board.show(picture);
    this.points = null;
    this.lead.textContent = "Looking for the face …";
    this.#show(true);
    this.#ready(false);
    this.#wait("Looking for the face");
    this.bytes = new Uint8Array(await this.sent.arrayBuffer());
    this.known = false; // whether the connection has this picture
    this.#preview();
  }

  #ready(on) {
    for (const button of this.buttons) button.disabled = !on;
    this.board.element.classList.toggle("blank", !on);
  }

  #wait(line) {
    this.veil.hidden = line === null;
    if (line !== null) this.veil.lastChild.textContent = line;
  }

  // --- The server ---

  /** The session that shows it, opened where there is none. */
  #preview() {
    if (this.seen) {
      this.#guess({});
      return;
    }
    const wire = new Wire({ role: "owner", format: "jpeg+alpha", fps: 24, session: "new", token: this.wire.hello.token });
    this.seen = wire;
    this.painter ??= new Painter(this.canvas);
    this.shown = 0;
    wire.addEventListener("welcome", () => {
      this.#guess({});
      const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
      this.#pose(this.pose ?? (still ? "rest" : "turns"));
    });
    wire.addEventListener("frame", async ({ detail: frame }) => {
      let drawn = false;
      if (this.dressed) {
        drawn = await this.painter.paint(frame).catch(() => false);
        if (drawn) {
          this.#wait(null);
          ++this.shown;
        }
      }
      wire.ack(frame, drawn ? now() : null);
    });
    wire.addEventListener("avatar", ({ detail }) => this.#answered(detail));
    wire.addEventListener("refused", ({ detail }) => this.#answered(detail));
    wire.addEventListener("state", ({ detail }) => {
      if (detail.state !== "lost" && detail.state !== "refused") return;
      // It must not come back as another session, as a wire does that lost its own.
      this.#leave();
      this.#wait("It cannot be shown now");
      this.say(detail.line || "The connection was lost: move a point to try again");
    });
    wire.open();
  }

  #leave() {
    clearInterval(this.turning);
    this.seen?.close();
    this.seen = null;
    this.known = this.dressed = this.busy = false;
  }

  /** done(answer) for an answer, or for {error: line}. */
  #ask(wire, told, done) {
    const bytes = wire === this.seen && this.known ? null : this.bytes;
    const id = wire.avatar({ name: this.name, ...told }, bytes);
    if (!id) return false;
    if (wire === this.seen) this.known = true;
    this.asked.set(id, done);
    return true;
  }

  #answered({ id, avatar, line }) {
    const done = this.asked.get(id);
    if (!done) return;
    setTimeout(() => this.asked.delete(id), 0); // the page's own listener still asks whose it is
    done(avatar ?? { error: line });
  }

  #guess(told) {
    this.#ask(this.seen, told, (answer) => {
      if (answer.error) {
        this.say(answer.error);
        this.#wait("It cannot be shown");
        return;
      }
      this.lead.textContent = BY[answer.by];
      this.board.place(answer.points, { near: answer.by !== "middle" });
      this.#ready(true);
      this.#changed();
    });
  }

  /** Points were moved: shown when they rest; the newest win. */
  #changed() {
    clearTimeout(this.resting);
    this.resting = setTimeout(() => this.#dress(), REST);
  }

  #dress() {
    if (!this.dialog.open || !this.board.points) return;
    if (!this.seen) {
      this.#preview();
      return;
    }
    if (this.busy) {
      this.again = true;
      return;
    }
    this.again = false;
    this.#closer();
    this.busy = this.#ask(this.seen, { points: this.board.points }, (answer) => {
      this.busy = false;
      this.say(answer.error ?? "");
      this.buttons[0].disabled = Boolean(answer.error);
      this.dressed ||= !answer.error;
      if (this.again) this.#dress();
    });
  }

  /** What is seen is the face, where it is a small part of the picture: which stands in a square, at its bottom. */
  #closer() {
    const { picture, points } = this.board;
    const longer = Math.max(picture.width, picture.height);
    const share = [picture.width / longer, picture.height / longer];
    const at = [(1 - share[0]) / 2 + points.headCentre[0] * share[0], 1 - share[1] + points.headCentre[1] * share[1]];
    const apart = Math.abs(points.eyeLeft[0] - points.eyeRight[0]) * share[0];
    const scale = Math.min(Math.max(0.2 / Math.max(apart, 0.01), 1), 5);
    const way = at.map((v) => Math.min(Math.max(50 - 100 * v, 50 / scale - 50), 50 - 50 / scale));
    this.canvas.style.transform = `scale(${scale}) translate(${way[0]}%, ${way[1]}%)`;
  }

  #pose(name) {
    this.pose = name;
    this.mark($(`[data-pose=${name}]`, this.dialog));
    clearInterval(this.turning);
    let at = 1;
    const put = (controls) => this.seen?.send({ controls: { ...Object.fromEntries(MOVED.map((one) => [one, 0])), ...controls } });
    if (name === "turns") {
      const next = () => put(POSES[(at = at + 1 < POSES.length ? at + 1 : 1)][2]);
      next();
      this.turning = setInterval(next, TURN);
    } else put(POSES.find(([one]) => one === name)[2]);
  }

  #take() {
    this.buttons[0].disabled = true;
    const asked = this.#ask(this.wire, { points: this.board.points }, (answer) => {
      this.buttons[0].disabled = false;
      if (answer.error) this.say(answer.error);
      else {
        this.dialog.close();
        this.taken(this.name);
      }
    });
    if (!asked) {
      this.buttons[0].disabled = false;
      this.say("The server cannot be reached now");
    }
  }

  /** What `hotloop live --avatar NAME --points points.json` makes the same avatar of. */
  #save() {
    const end = { "image/png": "png", "image/jpeg": "jpg", "image/webp": "webp" }[this.sent.type];
    save(this.sent, end, `${this.name}.${end}`);
    save(new Blob([`${JSON.stringify(this.board.points, null, 1)}\n`], { type: "application/json" }), "json", "points.json");
    this.lead.textContent = `hotloop live --avatar ${this.name}.${end} --points points.json`;
  }

  #end() {
    clearTimeout(this.resting);
    this.#leave();
  }
}

/** A picture that fits: at most so many bytes, LONGEST pixels a side. */
async function smaller(picture, type, most) {
  for (let side = LONGEST; ; side *= 0.8) {
    const scale = Math.min(1, side / Math.max(picture.width, picture.height));
    const canvas = make("canvas", {});
    canvas.width = Math.max(1, Math.round(picture.width * scale));
    canvas.height = Math.max(1, Math.round(picture.height * scale));
    canvas.getContext("2d").drawImage(picture, 0, 0, canvas.width, canvas.height);
    const blob = await new Promise((done) => canvas.toBlob(done, type, 0.92));
    if (blob.size <= most || side < 300) return blob;
  }
}
