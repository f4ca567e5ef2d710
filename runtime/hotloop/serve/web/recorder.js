// The canvas as a film, kept by the browser: WebM, with the microphone's sound where it is on.

const TYPES = ["video/webm;codecs=vp9,opus", "video/webm;codecs=vp8,opus", "video/webm", "video/mp4"];
const BITS = 8_000_000; // a second

export class Recorder {
  /** changed: called with the seconds recorded, once a second, and with null at the end. */
  constructor({ canvas, changed }) {
    Object.assign(this, { canvas, changed, recorder: null });
  }

  get on() {
    return this.recorder !== null;
  }

  start(sound = null) {
    const type = TYPES.find((one) => globalThis.MediaRecorder?.isTypeSupported(one));
    if (!type) throw new Error("This browser records no film");
    const stream = this.canvas.captureStream(60);
    sound?.getAudioTracks().forEach((track) => stream.addTrack(track.clone()));
    const parts = [];
    const recorder = new MediaRecorder(stream, { mimeType: type, videoBitsPerSecond: BITS });
    recorder.ondataavailable = ({ data }) => parts.push(data);
    recorder.onstop = () => {
      stream.getTracks().forEach((track) => track.stop());
      save(new Blob(parts, { type }), type.includes("mp4") ? "mp4" : "webm");
    };
    recorder.start(1000);
    this.recorder = recorder;
    const began = performance.now();
    this.ticking = setInterval(() => this.changed(Math.round((performance.now() - began) / 1000)), 1000);
    this.changed(0);
  }

  stop() {
    clearInterval(this.ticking);
    this.recorder?.stop();
    this.recorder = null;
    this.changed(null);
  }
}

/** Into the browser's folder of downloads, by default named by the time. */
export function save(blob, ending, name = null) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name ?? `hotloop ${new Date().toISOString().slice(0, 19).replace("T", " ").replaceAll(":", "-")}.${ending}`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}
