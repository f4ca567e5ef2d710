// A voice -> the shape of its mouth: hotloop/live/sources/microphone.py in the browser, so that no sound leaves it.
//
// 16 kHz, 10 ms at a time; the numbers are that file's, and a test holds both to the same weights.

const RATE = 16000;
export const FRAME = 160;
export const VOWELS = ["mouthA", "mouthI", "mouthU", "mouthE", "mouthO"];
const WINDOW = 512;
const BINS = WINDOW / 2 + 1;
const BANDS = 24;
const TERMS = 12;
const FLOOR = 1e-3;
const BLUR = 2.0;
const [QUIETEST, LOUDEST] = [-75.0, -40.0];
const [ABOVE, RISE] = [14.0, 0.05];

// Rows: a i u e o; columns: 12 terms and a constant.
const DISCRIMINANTS = [
  [-0.871, -1.78, -1.51, -1.75, -0.137, -1.16, -1.49, -0.817, -1.61, -2.63, -0.882, -1.24, -10.8],
  [-1.47, 0.984, 0.999, -1.25, 0.596, -1.17, -1.53, -0.472, -1.43, -1.11, 0.31, -1.5, -12.4],
  [-0.32, 0.866, -0.398, -0.836, -0.409, -0.816, -1.28, -1.81, -2.15, -1.48, -0.599, -0.302, -7.02],
  [-1.16, 0.135, 0.296, -2.24, -1.77, -2.53, -2, -1.01, -0.67, -0.371, 0.307, -1.38, -12.5],
  [-0.926, -0.228, -1.12, -2.85, -0.861, -1.51, -2.01, -0.842, -1.99, -0.552, 0.374, -0.285, -11.8],
];

const clip = (value, low, high) => Math.min(Math.max(value, low), high);
const mel = (frequency) => 2595 * Math.log10(1 + frequency / 700);
const range = (n, of) => Array.from({ length: n }, (_, i) => of(i));
const FREQUENCIES = range(BINS, (bin) => (bin * RATE) / WINDOW);
const EDGES = range(BANDS + 2, (i) => 700 * (10 ** ((mel(100) + (i * (mel(5500) - mel(100))) / (BANDS + 1)) / 2595) - 1));
const BANK = range(BANDS, (b) => {
  const [low, mid, high] = EDGES.slice(b, b + 3);
  return FREQUENCIES.map((f) => Math.max(Math.min((f - low) / (mid - low), (high - f) / (high - mid)), 0));
});
const SHAPE = range(WINDOW, (i) => 0.5 - 0.5 * Math.cos((2 * Math.PI * i) / (WINDOW - 1)));
const SHAPE_SUM = SHAPE.reduce((sum, value) => sum + value, 0);
const COSINES = range(TERMS, (t) =>
  range(BANDS, (b) => Math.sqrt(2 / BANDS) * Math.cos((Math.PI * (t + 1) * (b + 0.5)) / BANDS)),
);
const VOICED = FREQUENCIES.map((f, bin) => f < 1200 && bin > 2);
const TURNS = range(WINDOW / 2, (i) => [Math.cos((2 * Math.PI * i) / WINDOW), -Math.sin((2 * Math.PI * i) / WINDOW)]);

/** |FFT|^2 of the shaped window, [257]: radix 2, in place (Cooley and Tukey 1965). */
function power(window) {
  const re = Float64Array.from(window, (value, i) => value * SHAPE[i]);
  const im = new Float64Array(WINDOW);
  for (let i = 1, j = 0; i < WINDOW; ++i) {
    let bit = WINDOW >> 1;
    for (; j & bit; bit >>= 1) j ^= bit;
    j ^= bit;
    if (i < j) [re[i], re[j]] = [re[j], re[i]];
  }
  for (let half = 1; half < WINDOW; half *= 2) {
    const stride = WINDOW / (2 * half);
    for (let begin = 0; begin < WINDOW; begin += 2 * half) {
      for (let k = 0; k < half; ++k) {
        const [c, s] = TURNS[k * stride];
        const [i, j] = [begin + k, begin + k + half];
        const [x, y] = [re[j] * c - im[j] * s, re[j] * s + im[j] * c];
        [re[j], im[j], re[i], im[i]] = [re[i] - x, im[i] - y, re[i] + x, im[i] + y];
      }
    }
  }
  return range(BINS, (bin) => re[bin] ** 2 + im[bin] ** 2);
}

const dot = (a, b) => {
  let sum = 0;
  for (let i = 0; i < a.length; ++i) sum += a[i] * b[i];
  return sum;
};

function cepstrum(window) {
  const bands = BANK.map(dot.bind(null, power(window.map((v, i) => (i ? v - 0.97 * window[i - 1] : v)))));
  const most = Math.max(...bands);
  const logs = bands.map((band) => Math.log(band + FLOOR * most + 1e-12));
  return COSINES.map((row) => dot(row, logs));
}

export class Visemes {
  constructor() {
    this.past = new Float64Array(WINDOW);
    this.rest = [];
    this.scores = VOWELS.map(() => 0);
    this.noise = -60.0;
    this.silence = 1;
    this.weights = Object.fromEntries(VOWELS.map((name) => [name, 0]));
  }

  /** Samples in -1..1 at 16 kHz -> {mouthA .. mouthO} after the last whole 10 ms; with `silence` they sum to 1. */
  feed(samples) {
    this.rest.push(...samples);
    while (this.rest.length >= FRAME) this.#step(this.rest.splice(0, FRAME));
    return this.weights;
  }

  #step(frame) {
    this.past.copyWithin(0, FRAME);
    this.past.set(frame.map((value) => clip(value, -1, 1)), WINDOW - FRAME);
    const terms = [...cepstrum(this.past), 1];
    const scores = DISCRIMINANTS.map((row) => dot(row, terms));
    const mean = scores.map((score, i) => (score + this.scores[i]) / 2);
    this.scores = scores;
    const likely = mean.map((score) => Math.exp((score - Math.max(...mean)) / BLUR));
    const total = likely.reduce((sum, value) => sum + value, 0);
    const loud = power(this.past).reduce((sum, value, bin) => sum + (VOICED[bin] ? value : 0), 0);
    const level = 10 * Math.log10((loud / (WINDOW * SHAPE_SUM)) * 2 + 1e-12);
    this.noise = clip(Math.min(level, this.noise + RISE), QUIETEST, LOUDEST);
    const voice = 1 / (1 + Math.exp(-clip(level - this.noise - ABOVE, -60, 60) / 2));
    this.silence = 1 - voice;
    this.weights = Object.fromEntries(VOWELS.map((name, i) => [name, (voice * likely[i]) / total]));
  }
}
