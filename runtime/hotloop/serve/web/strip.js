// How the stream is doing, in words: delay, smoothness, what was left out, quality.

import { $, make } from "./widgets.js";

const WINDOW = 10_000; // ms
const FIRST = 1000; // ms in which a browser is still waking
const SHOWN = 120;
const EVERY = 400; // ms

export const percentile = (sorted, share) => sorted[Math.max(Math.ceil(share * sorted.length), 1) - 1];

/** Delays (ms) as people feel them: below about 50 ms a hand and its picture are one. */
export function feeling(usual, ms) {
  if (ms > 3 * usual + 60) return ["uneven", "warn"];
  if (ms < 50) return ["feels instant", "good"];
  if (ms < 110) return ["quick", "good"];
  if (ms < 220) return ["noticeable", "warn"];
  return ["slow", "bad"];
}

/** The governor's rung as a streamer reads it -> [a word, why]. */
export function quality(name) {
  const number = /\d+/.exec(name ?? "")?.[0];
  if (!name || name === "asked" || name === "full") return ["Full", "as you asked for"];
  if (name.startsWith("rows")) return ["Quicker", `${number} step${number === "1" ? "" : "s"} a frame, to keep up`];
  if (name.startsWith("size")) return ["Smaller", `${number} pixels, to keep up`];
  if (name.includes("tiny")) return ["Lighter", "the quick decoder, to keep up"];
  if (name.includes("half") || name.includes("fps")) return ["Half rate", "fewer frames, to keep up"];
  if (name.includes("keyframe")) return ["Steady", "new looks wait, to keep up"];
  return [name[0].toUpperCase() + name.slice(1), "lowered, to keep up"];
}

const whole = (count) => count.toLocaleString("en");

export class Strip {
  constructor() {
    this.reset();
    this.spark = $("#spark");
    setInterval(() => this.#show(), EVERY);
  }

  /** A frame was drawn, `age` ms after what it shows; null where that is not known. */
  frame(age) {
    const at = performance.now();
    this.shown.push(at);
    while (this.shown[0] < at - 2000) this.shown.shift();
    if (age === null || at < this.begun + FIRST) return;
    this.ages.push({ at, age: Math.max(age, 0) });
    while (this.ages[0].at < at - WINDOW) this.ages.shift();
  }

  /** The connection began anew. */
  reset() {
    Object.assign(this, { ages: [], shown: [], overtaken: 0, stats: null, begun: performance.now() });
  }

  /** What tests and the curious read. */
  get numbers() {
    const sorted = this.ages.map(({ age }) => age).sort((a, b) => a - b);
    const [p50, p95, p99] = [0.5, 0.95, 0.99].map((share) => percentile(sorted, share) ?? null);
    const shown = this.shown.filter((at) => at > performance.now() - 2000);
    const fps = shown.length > 1 ? (1000 * (shown.length - 1)) / (shown.at(-1) - shown[0]) : 0;
    return { p50, p95, p99, fps, overtaken: this.overtaken };
  }

  #show() {
    const { p50, p95, p99, fps, overtaken } = this.numbers;
    const [delay, word] = [$("#delay"), $("#delay-word")];
    if (p50 === null) {
      delay.textContent = "–";
      word.textContent = fps ? "nothing to follow yet" : "measuring";
      word.removeAttribute("data-mood");
      $("#spread").textContent = "from your signal to this screen";
    } else {
      delay.replaceChildren(String(Math.round(p50)), make("em", {}, "ms"));
      [word.textContent, word.dataset.mood] = feeling(p50, p95);
      $("#spread").textContent = `95 % within ${Math.round(p95)} ms, 99 % within ${Math.round(p99)}`;
      $("#spread").title = `p50 ${p50.toFixed(1)} ms, p95 ${p95.toFixed(1)} ms, p99 ${p99.toFixed(1)} ms`;
    }
    $("#fps").textContent = fps ? String(Math.round(fps)) : "–";
    $("#fps-word").textContent = fps ? (fps >= 50 ? "very smooth" : fps >= 24 ? "smooth" : fps >= 12 ? "a little jerky" : "jerky") : "waiting";

    const { source = {}, viewer = {}, rung, faults = {} } = this.stats ?? {};
    const late = (viewer.superseded ?? 0) + overtaken;
    const lost = late + (source.superseded ?? 0);
    $("#drops").textContent = whole(lost);
    const held = Object.values(faults).reduce((sum, n) => sum + n, 0);
    $("#drops-word").textContent = held
      ? `${whole(held)} mended`
      : lost ? "newer ones came first" : "none late, none queued";
    const [name, why] = quality(rung);
    $("#rung").textContent = name;
    $("#rung-word").textContent = why;
    this.#draw();
  }

  #draw() {
    const { spark } = this;
    const [w, h] = [spark.clientWidth, spark.clientHeight];
    if (!w) return;
    const scale = devicePixelRatio;
    if (spark.width !== Math.round(w * scale)) spark.width = Math.round(w * scale);
    if (spark.height !== Math.round(h * scale)) spark.height = Math.round(h * scale);
    const drawing = spark.getContext("2d");
    drawing.setTransform(scale, 0, 0, scale, 0, 0);
    drawing.clearRect(0, 0, w, h);
    const ages = this.ages.slice(-SHOWN).map(({ age }) => age);
    if (ages.length < 2) return;
    const most = Math.max(...ages, 20) * 1.5;
    const at = (age, i) => [(w * i) / (SHOWN - 1) + (w * (SHOWN - ages.length)) / (SHOWN - 1), h - 4 - (h - 8) * (age / most)];
    drawing.beginPath();
    ages.forEach((age, i) => drawing.lineTo(...at(age, i)));
    drawing.strokeStyle = getComputedStyle(spark).color;
    drawing.lineWidth = 1.75;
    drawing.lineJoin = "round";
    drawing.stroke();
    drawing.lineTo(w, h);
    drawing.lineTo(at(ages[0], 0)[0], h);
    drawing.globalAlpha = 0.13;
    drawing.fillStyle = drawing.strokeStyle;
    drawing.fill();
    drawing.globalAlpha = 1;
  }
}
