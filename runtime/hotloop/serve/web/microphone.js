// The microphone moves the mouth: what it hears is read here, in the browser; only the mouth's shape is sent.

import { FRAME, VOWELS, Visemes } from "./visemes.js";

const EVERY = 2; // frames of 10 ms between two messages

export class Microphone {
  /** send: called with {mouthA .. mouthO}; show: with {level 0..1, vowel or ""}. */
  constructor({ send, show }) {
    Object.assign(this, { send, show, on: false });
  }

  /** Asks for the microphone; throws what the browser says where it is refused. */
  async start() {
    const stream = await navigator.mediaDevices.getUserMedia({
      audio: { echoCancellation: true, noiseSuppression: true, autoGainControl: true },
    });
    try {
      const context = new AudioContext();
      await context.audioWorklet.addModule(new URL("./microphone-worklet.js", import.meta.url));
      const worklet = new AudioWorkletNode(context, "resampler", { numberOfOutputs: 0, channelCount: 1 });
      const visemes = new Visemes();
      let frames = 0;
      worklet.port.onmessage = ({ data }) => {
        const weights = visemes.feed(data);
        if (++frames % EVERY === 0) this.#tell(weights, data);
      };
      context.createMediaStreamSource(stream).connect(worklet);
      Object.assign(this, { stream, context, on: true });
    } catch (error) {
      stream.getTracks().forEach((track) => track.stop());
      throw error;
    }
  }

  async stop() {
    if (!this.on) return;
    this.on = false;
    this.stream.getTracks().forEach((track) => track.stop());
    await this.context.close();
    this.send(Object.fromEntries(VOWELS.map((name) => [name, 0])));
    this.show({ level: 0, vowel: "" });
  }

  #tell(weights, samples) {
    if (!this.on) return;
    const loud = Math.sqrt(samples.reduce((sum, value) => sum + value * value, 0) / FRAME);
    const most = VOWELS.reduce((best, name) => (weights[name] > weights[best] ? name : best));
    this.send(weights);
    this.show({ level: Math.min(1, Math.sqrt(loud) * 1.6), vowel: weights[most] > 0.3 ? most.slice(5).toLowerCase() : "" });
  }
}
