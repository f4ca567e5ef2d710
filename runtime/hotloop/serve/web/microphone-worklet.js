// On the audio thread: the microphone's samples at the browser's rate -> 16 kHz, sent on in blocks of 10 ms.

const RATE = 16000;
const FRAME = 160;
const LOBES = 12; // of the low-pass's kernel to each side

/** Linear-phase low-pass at half the lower rate, between samples: a sinc under a Hann window. */
function kernel(x, cut) {
  const reach = LOBES / cut;
  if (Math.abs(x) >= reach) return 0;
  const shape = 0.5 + 0.5 * Math.cos((Math.PI * x) / reach);
  const turn = Math.PI * cut * x;
  return cut * shape * (turn === 0 ? 1 : Math.sin(turn) / turn);
}

class Resampler extends AudioWorkletProcessor {
  constructor() {
    super();
    this.step = sampleRate / RATE;
    this.cut = Math.min(1, 1 / this.step);
    this.reach = Math.ceil(LOBES / this.cut);
    this.past = [];
    this.place = this.reach; // of the next output among the samples kept
    this.made = [];
  }

  process([[samples]]) {
    if (!samples) return true;
    this.past.push(...samples);
    while (this.place + this.reach < this.past.length) {
      const middle = Math.floor(this.place);
      let sum = 0;
      for (let i = middle - this.reach + 1; i <= middle + this.reach; ++i) {
        sum += (this.past[i] ?? 0) * kernel(i - this.place, this.cut);
      }
      this.made.push(sum);
      this.place += this.step;
    }
    const gone = Math.max(Math.floor(this.place) - this.reach, 0);
    this.past.splice(0, gone);
    this.place -= gone;
    while (this.made.length >= FRAME) this.port.postMessage(Float32Array.from(this.made.splice(0, FRAME)));
    return true;
  }
}

registerProcessor("resampler", Resampler);
