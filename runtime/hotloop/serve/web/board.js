// The picture with its ten points: dragged by mouse or finger, moved by arrow keys, seen closely under a glass.
//
// Points are shares of the picture, left and right the person's own: the left eye lies at the right of the picture.

import { icon, make } from "./widgets.js";

const [STEP, LEAP] = [1, 10]; // pixels of the screen that an arrow key moves, and with Shift
const REACH = 44; // pixels within which a press takes a point
const [GLASS, MORE] = [132, 3]; // the glass: pixels, and how much it enlarges what the board shows
const [FURTHEST, CLOSEST] = [1, 10];
const APART = 0.224; // face units between the eyes: live/animation/geometry.py

const NAMES = {
  eyeRight: ["Right eye", "the middle of the iris. “Right” is the avatar’s own right, on the left here. Its lids come along.", "eye"],
  lidUpperRight: ["Upper lid of the right eye", "the upper edge of the open eye, below the lashes’ line, over the iris.", "lid"],
  lidLowerRight: ["Lower lid of the right eye", "the lower edge of the open eye, under the iris.", "lid"],
  eyeLeft: ["Left eye", "the middle of the iris. “Left” is the avatar’s own left, on the right here. Its lids come along.", "eye"],
  lidUpperLeft: ["Upper lid of the left eye", "the upper edge of the open eye, below the lashes’ line, over the iris.", "lid"],
  lidLowerLeft: ["Lower lid of the left eye", "the lower edge of the open eye, under the iris.", "lid"],
  mouthRight: ["Right corner of the mouth", "where the line between the lips ends, on the left here.", "mouth"],
  mouthLeft: ["Left corner of the mouth", "where the line between the lips ends, on the right here.", "mouth"],
  chin: ["Chin", "the lowest place of the face.", "head"],
  headCentre: ["Middle of the head", "half way between the chin and the top of the hair: what the head turns about.", "head"],
};
const ALONG = { eyeRight: ["lidUpperRight", "lidLowerRight"], eyeLeft: ["lidUpperLeft", "lidLowerLeft"] };
const COLOURS = { eye: "#ff5a36", lid: "#ffb02e", mouth: "#1fa2ff", head: "#a45cff" };

const held = (value, low, high) => Math.min(Math.max(value, low), high);

export class Board {
  /** changed(): points were moved; eyes([[x, y], [x, y]]): both were shown. */
  constructor({ changed, eyes }) {
    this.changed = changed;
    this.eyes = eyes;
    this.points = this.picture = this.showing = null;
    this.zoom = 1;
    this.middle = [0.5, 0.5];
    this.canvas = make("canvas", { "aria-hidden": "true" });
    this.glass = make("canvas", { class: "glass", "aria-hidden": "true", hidden: true });
    this.live = make("p", { class: "sr", role: "status" });
    this.handles = Object.entries(NAMES).map(([name, [label, , kind]]) =>
      make("button", { type: "button", class: `handle ${kind}`, "data-point": name, "aria-label": label, "aria-roledescription": "point", "aria-describedby": "points-keys" }, make("span", {}, label)));
    const tool = (id, label, run, shown) => make("button", { type: "button", class: "tool", id, "aria-label": label, title: label, onclick: run }, shown);
    this.pick = make("button", { type: "button", class: "button", id: "points-eyes", "aria-pressed": "false", onclick: () => this.#show(this.showing ? null : []) }, icon("none"), "Show the eyes");
    this.element = make("div", { class: "board", id: "points-board", role: "group", "aria-label": "The picture with its ten points" },
      this.canvas, ...this.handles, this.glass, this.live,
      make("div", { class: "tools" }, this.pick, make("span", { class: "gap" }),
        tool("points-further", "Further away", () => this.#closer(1 / 1.5), "−"),
        tool("points-whole", "The whole picture", () => this.#closer(0), icon("full")),
        tool("points-closer", "Closer", () => this.#closer(1.5), "+")));
    this.name = make("b", {});
    this.text = make("span", {});
    this.about = make("div", { class: "about", id: "points-about" }, make("p", {}, this.name, " – ", this.text),
      make("small", { id: "points-keys" }, "Tab goes to the next point, arrow keys move it, with Shift in leaps."));
    this.#tell("eyeRight");
    this.#listen();
  }

  /** A picture (ImageBitmap), no points yet. */
  show(picture) {
    this.picture?.close();
    Object.assign(this, { picture, points: null, zoom: 1, middle: [0.5, 0.5] });
    this.#show(null);
    this.#fit();
  }

  /** near: go to where they are. */
  place(points, { near = false } = {}) {
    this.points = structuredClone(points);
    if (near) {
      const { w } = this.#size();
      const apart = Math.abs(points.eyeLeft[0] - points.eyeRight[0]) * w;
      this.zoom = held(0.26 * Math.min(this.wide, this.high) / Math.max(apart, 1), FURTHEST, CLOSEST);
      this.middle = [points.headCentre[0], (points.chin[1] + points.eyeLeft[1]) / 2];
    }
    this.#draw();
  }

  // --- Where things are ---

  /** The picture's size on the screen as it fits, without zoom. */
  #size() {
    const scale = Math.min(this.wide / this.picture.width, this.high / this.picture.height);
    return { w: this.picture.width * scale, h: this.picture.height * scale };
  }

  /** Its place on the screen: [left, top, width, height], never further from the borders than needed. */
  #frame() {
    const { w, h } = this.#size();
    const [width, height] = [w * this.zoom, h * this.zoom];
    const along = (whole, room, at) => (whole <= room ? (room - whole) / 2 : held(room / 2 - at * whole, room - whole, 0));
    return [along(width, this.wide, this.middle[0]), along(height, this.high, this.middle[1]), width, height];
  }

  #onScreen([x, y]) {
    const [left, top, width, height] = this.#frame();
    return [left + x * width, top + y * height];
  }

  #onPicture(x, y) {
    const [left, top, width, height] = this.#frame();
    return [held((x - left) / width, 0, 1), held((y - top) / height, 0, 1)];
  }

  // --- What is done ---

  #listen() {
    new ResizeObserver(() => this.#fit()).observe(this.element);
    this.element.addEventListener("pointerdown", (event) => this.#press(event));
    this.element.addEventListener("wheel", (event) => {
      if (!this.picture) return;
      event.preventDefault();
      this.#closer(event.deltaY < 0 ? 1.15 : 1 / 1.15, this.#at(event));
    }, { passive: false });
    for (const handle of this.handles) {
      const { point } = handle.dataset;
      handle.addEventListener("focus", () => {
        this.#tell(point);
        this.#seek(point);
        this.#draw();
      });
      handle.addEventListener("blur", () => this.#look(null));
      handle.addEventListener("keydown", (event) => {
        const way = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
        if (!way || !this.points) return;
        event.preventDefault();
        const far = event.shiftKey ? LEAP : STEP;
        const [x, y] = this.#onScreen(this.points[point]);
        this.#move(point, this.#onPicture(x + far * way[0], y + far * way[1]));
        this.#seek(point);
        this.#look(point);
      });
    }
  }

  #at(event) {
    const box = this.element.getBoundingClientRect();
    return [event.clientX - box.left, event.clientY - box.top];
  }

  #press(event) {
    if (!this.picture || event.button || event.target.closest(".tools")) return;
    event.preventDefault();
    const [x, y] = this.#at(event);
    if (this.showing) {
      this.#show([...this.showing, this.#onPicture(x, y)]);
      return;
    }
    const near = this.points && Object.entries(this.points)
      .map(([name, place]) => ({ name, far: Math.hypot(...this.#onScreen(place).map((v, i) => v - [x, y][i])) }))
      .reduce((best, one) => (one.far < best.far ? one : best));
    const point = near && near.far <= REACH ? near.name : null;
    const [from, middle] = [point ? this.#onScreen(this.points[point]) : null, this.middle];
    if (point) this.handles.find((one) => one.dataset.point === point).focus({ preventScroll: true });
    const [, , width, height] = this.#frame();
    const move = (then) => {
      const [dx, dy] = this.#at(then).map((v, i) => v - [x, y][i]);
      if (point) {
        this.#move(point, this.#onPicture(from[0] + dx, from[1] + dy));
        this.#look(point);
      } else {
        this.middle = [held(middle[0] - dx / width, 0, 1), held(middle[1] - dy / height, 0, 1)];
        this.#draw();
      }
    };
    const stop = () => {
      this.#look(null);
      for (const name of ["pointermove", "pointerup", "pointercancel"]) this.element.removeEventListener(name, name === "pointermove" ? move : stop);
    };
    this.element.setPointerCapture(event.pointerId);
    this.element.addEventListener("pointermove", move);
    this.element.addEventListener("pointerup", stop);
    this.element.addEventListener("pointercancel", stop);
    if (point) this.#look(point);
  }

  #move(name, place) {
    const by = place.map((v, i) => v - this.points[name][i]);
    this.points[name] = place;
    for (const other of ALONG[name] ?? []) this.points[other] = this.points[other].map((v, i) => held(v + by[i], 0, 1));
    this.#draw();
    this.changed();
    clearTimeout(this.telling);
    this.telling = setTimeout(() => {
      this.live.textContent = `${NAMES[name][0]}: ${place.map((v, i) => `${(100 * v).toFixed(1)} % ${["across", "down"][i]}`).join(", ")}`;
    }, 500);
  }

  /** A point that is off the screen comes back to it. */
  #seek(name) {
    if (!this.points) return;
    const [x, y] = this.#onScreen(this.points[name]);
    if (x < 8 || y < 8 || x > this.wide - 8 || y > this.high - 8) this.middle = [...this.points[name]];
  }

  #closer(times, at = [this.wide / 2, this.high / 2]) {
    if (!this.picture) return;
    const place = this.#onPicture(...at);
    this.zoom = times ? held(this.zoom * times, FURTHEST, CLOSEST) : FURTHEST;
    const { w, h } = this.#size();
    this.middle = [place[0] + (this.wide / 2 - at[0]) / (w * this.zoom), place[1] + (this.high / 2 - at[1]) / (h * this.zoom)];
    this.#draw();
  }

  /** Both eyes are to be clicked: those that were; null: no more. */
  #show(clicked) {
    this.showing = clicked;
    this.pick.setAttribute("aria-pressed", String(clicked !== null));
    this.element.classList.toggle("showing", clicked !== null);
    this.pick.lastChild.textContent = clicked === null ? "Show the eyes" : `Click the eye on the ${clicked.length ? "right" : "left"}`;
    if (clicked?.length === 2) {
      this.#show(null);
      this.eyes(clicked.sort((a, b) => a[0] - b[0]));
    } else if (this.picture) this.#draw();
  }

  #tell(name) {
    [this.name.textContent, this.text.textContent] = NAMES[name];
    this.current = name;
  }

  // --- What is drawn ---

  #fit() {
    const { clientWidth, clientHeight } = this.element;
    if (!clientWidth) return;
    [this.wide, this.high] = [clientWidth, clientHeight];
    this.canvas.width = this.wide * devicePixelRatio;
    this.canvas.height = this.high * devicePixelRatio;
    if (this.picture) this.#draw();
  }

  #draw() {
    if (!this.wide) return;
    const to = this.canvas.getContext("2d");
    to.setTransform(devicePixelRatio, 0, 0, devicePixelRatio, 0, 0);
    to.clearRect(0, 0, this.wide, this.high);
    to.drawImage(this.picture, ...this.#frame());
    for (const [i, eye] of (this.showing ?? []).entries()) {
      const [x, y] = this.#onScreen(eye);
      ring(to, x, y, COLOURS.eye, i);
    }
    if (this.points && !this.showing) this.#lines(to);
    for (const handle of this.handles) {
      handle.hidden = !this.points || this.showing !== null;
      if (handle.hidden) continue;
      const [x, y] = this.#onScreen(this.points[handle.dataset.point]);
      handle.style.transform = `translate(${x}px, ${y}px)`;
      handle.classList.toggle("away", x > this.wide - 170);
    }
  }

  /** What is made of the points: eyes, mouth, chin, head. */
  #lines(to) {
    const at = Object.fromEntries(Object.entries(this.points).map(([name, place]) => [name, this.#onScreen(place)]));
    const apart = Math.hypot(at.eyeLeft[0] - at.eyeRight[0], at.eyeLeft[1] - at.eyeRight[1]) || 1;
    const line = (colour, path, dash = []) => {
      for (const [style, width] of [["rgb(255 255 255 / 85%)", 4], [colour, 2]]) {
        Object.assign(to, { strokeStyle: style, lineWidth: width, lineCap: "round", lineJoin: "round" });
        to.setLineDash(dash);
        to.beginPath();
        path();
        to.stroke();
      }
      to.setLineDash([]);
    };
    for (const side of ["Right", "Left"]) {
      const [x, up, low] = [at[`eye${side}`][0], at[`lidUpper${side}`][1], at[`lidLower${side}`][1]];
      const wide = held(0.56 * (low - up), 0.23 * apart, 0.36 * apart);
      const corner = up + 0.62 * (low - up);
      line(COLOURS.lid, () => {
        to.moveTo(x - wide, corner);
        to.quadraticCurveTo(x, 2 * up - corner, x + wide, corner);
        to.quadraticCurveTo(x, 2 * low - corner, x - wide, corner);
      });
    }
    line(COLOURS.mouth, () => {
      to.moveTo(...at.mouthRight);
      to.lineTo(...at.mouthLeft);
    });
    const [cx, cy] = at.headCentre;
    const eyes = (at.eyeLeft[1] + at.eyeRight[1]) / 2;
    const half = [Math.max(1.25 * apart, 0.62 * (at.chin[1] - eyes)), 1.08 * Math.max(at.chin[1] - cy, (0.25 / APART) * apart)];
    line(COLOURS.head, () => to.ellipse(cx, cy, ...half, 0, 0, 2 * Math.PI), [7, 8]);
    line(COLOURS.head, () => to.ellipse(at.chin[0], at.chin[1] - 0.25 * apart, 0.42 * apart, 0.25 * apart, 0, 0.25 * Math.PI, 0.75 * Math.PI));
  }

  /** The glass over a point; null: away with it. */
  #look(name) {
    this.glass.hidden = name === null;
    if (name === null) return;
    const [x, y] = this.#onScreen(this.points[name]);
    const side = GLASS * devicePixelRatio;
    if (this.glass.width !== side) this.glass.width = this.glass.height = side;
    const to = this.glass.getContext("2d");
    to.setTransform(devicePixelRatio, 0, 0, devicePixelRatio, 0, 0);
    to.clearRect(0, 0, GLASS, GLASS);
    const [left, top, width, height] = this.#frame();
    to.imageSmoothingEnabled = false;
    to.drawImage(this.picture, GLASS / 2 + MORE * (left - x), GLASS / 2 + MORE * (top - y), MORE * width, MORE * height);
    const middle = GLASS / 2;
    for (const [style, wide] of [["#fff", 3.5], [COLOURS[NAMES[name][2]], 1.5]]) {
      Object.assign(to, { strokeStyle: style, lineWidth: wide });
      to.beginPath();
      for (const [a, b] of [[-22, -6], [6, 22]]) {
        to.moveTo(middle + a, middle);
        to.lineTo(middle + b, middle);
        to.moveTo(middle, middle + a);
        to.lineTo(middle, middle + b);
      }
      to.stroke();
    }
    this.glass.classList.toggle("right", x < GLASS + 60 && y < GLASS + 60);
  }
}

function ring(to, x, y, colour) {
  for (const [style, width] of [["#fff", 5], [colour, 2.5]]) {
    Object.assign(to, { strokeStyle: style, lineWidth: width });
    to.beginPath();
    to.arc(x, y, 14, 0, 2 * Math.PI);
    to.stroke();
  }
}
