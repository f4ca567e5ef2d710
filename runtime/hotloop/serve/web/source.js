// What the server draws from: a camera, a screen or a file, as pictures of the session's size.

import { now } from "./wire.js";

const QUALITY = 0.85;
const LEAST = 128; // pixels: a small model still sees what a larger picture was averaged from

export class Source {
  /**
   * wire     pictures go out through it
   * video    shows what is sent
   * changed  called with ("none" | "camera" | "screen" | "file", a label) whenever it changes
   */
  constructor({ wire, video, changed }) {
    Object.assign(this, { wire, video, changed, kind: "none", picture: null, rate: 30, sent: 0, left: 0 });
    this.canvas = document.createElement("canvas");
    this.drawing = this.canvas.getContext("2d", { alpha: false, desynchronized: true });
    this.size = [512, 512];
    this.turn = 0;
  }

  /** Whether pictures come one after another. */
  get follows() {
    return this.kind !== "none" && this.picture === null;
  }

  /** The session draws pictures of this size. */
  fit(width, height) {
    if (width > 0 && height > 0) this.size = [width, height].map((side) => Math.round(side * Math.max(1, LEAST / Math.min(width, height))));
  }

  /** Throws what the browser says where it refuses. */
  async camera(device = "") {
    const wanted = { width: { ideal: 640 }, height: { ideal: 480 }, frameRate: { ideal: 30 } };
    const video = device ? { ...wanted, deviceId: { exact: device } } : { ...wanted, facingMode: "user" };
    const stream = await navigator.mediaDevices.getUserMedia({ video, audio: false });
    await this.#stream("camera", stream, stream.getVideoTracks()[0].label);
  }

  async screen() {
    const stream = await navigator.mediaDevices.getDisplayMedia({ video: { frameRate: { ideal: 30 } }, audio: false });
    await this.#stream("screen", stream, "Screen");
  }

  /** A picture is sent once, and again when the session comes back; a film goes round. */
  async file(file) {
    this.stop();
    if (file.type.startsWith("image/")) {
      this.picture = await createImageBitmap(file);
      this.kind = "file";
      this.changed("file", file.name);
      await this.resend();
      return;
    }
    const { video } = this;
    this.address = URL.createObjectURL(file);
    Object.assign(video, { src: this.address, loop: true, muted: true });
    try {
      await video.play();
    } catch {
      this.stop();
      throw new Error(`${file.name} is no picture or film that this browser can read`);
    }
    this.#follow("file", file.name);
  }

  stop() {
    ++this.turn;
    this.video.srcObject?.getTracks().forEach((track) => track.stop());
    this.video.srcObject = null;
    if (this.address) {
      URL.revokeObjectURL(this.address);
      this.address = null;
      this.video.removeAttribute("src");
      this.video.load();
    }
    this.picture?.close();
    this.picture = null;
    if (this.kind !== "none") {
      this.kind = "none";
      this.wire.send({ source: false });
      this.changed("none", "");
    }
  }

  async resend() {
    if (this.picture) await this.#push(this.picture, this.picture.width, this.picture.height, now());
  }

  async #stream(kind, stream, label) {
    this.stop();
    this.video.srcObject = stream;
    const turn = this.turn;
    stream.getVideoTracks()[0].addEventListener("ended", () => turn === this.turn && this.stop());
    await this.video.play();
    this.#follow(kind, label);
  }

  #follow(kind, label) {
    const { video, turn } = this;
    this.kind = kind;
    this.changed(kind, label);
    let due = 0;
    const next = async (at, about) => {
      if (turn !== this.turn) return;
      const captured = about?.captureTime ?? at ?? now();
      if (captured >= due - 4 && video.videoWidth) {
        due = Math.max(due + 1000 / this.rate, captured);
        await this.#push(video, video.videoWidth, video.videoHeight, captured);
      }
      if (turn !== this.turn) return;
      if (video.requestVideoFrameCallback) video.requestVideoFrameCallback(next);
      else requestAnimationFrame((then) => next(then));
    };
    next(now());
  }

  /** The middle of a picture, as large as fits, at the session's size. */
  async #push(picture, width, height, captured) {
    const [w, h] = this.size;
    if (this.canvas.width !== w || this.canvas.height !== h) Object.assign(this.canvas, { width: w, height: h });
    const scale = Math.min(width / w, height / h);
    const [cw, ch] = [w * scale, h * scale];
    this.drawing.drawImage(picture, (width - cw) / 2, (height - ch) / 2, cw, ch, 0, 0, w, h);
    const { turn } = this;
    const blob = await new Promise((done) => this.canvas.toBlob(done, "image/jpeg", QUALITY));
    const bytes = await blob?.arrayBuffer();
    if (turn !== this.turn) return; // it was stopped meanwhile: no picture comes after the last word
    if (bytes && this.wire.picture(bytes, captured)) ++this.sent;
    else ++this.left;
  }
}
