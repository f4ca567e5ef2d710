// The live wire (docs/live-protocol.md): one WebSocket, text both ways, pictures up and frames down as binary.
//
// It comes back by itself: after 0.25 s, then twice as long each time up to 8 s, with some chance in it so that many
// viewers do not come at once. The server's clock is known from pings as NTP knows it: the smallest round trip of the
// last sixteen, erring by half of it at most.

export const FRAME = { JPEG: 1, JPEG_ALPHA: 2, RGBA: 3, FIELDS: 5 };
const MAGIC = 0x31464c48; // "HLF1", little-endian
const HEADER = 72;
const PICTURE = 0x31534c48; // "HLS1"
const AVATAR = 0x31414c48; // "HLA1"
const PINGS = 16;
const FIRST_WAIT = 250;
const LONGEST_WAIT = 8000;
const STOOD = 250; // ms
const SILENCE = 6000; // ms without a byte, pongs included: the connection is dead
const [REFUSED, BUSY] = [1008, 1013]; // why the server closes
const MOST_WAITING = 256 * 1024; // bytes not yet sent: newer pictures wait for the next one

/** Milliseconds on this page's clock, which never jumps. */
export const now = () => performance.now();

/** A binary message -> a frame. Times are ms on the server's clock, null where there are none. */
export function parseFrame(buffer) {
  const view = new DataView(buffer);
  if (buffer.byteLength < HEADER || view.getUint32(0, true) !== MAGIC) throw new Error("[wire] not a frame");
  const header = view.getUint16(6, true);
  const [colour, alpha] = [view.getUint32(64, true), view.getUint32(68, true)];
  if (header < HEADER || header + colour + alpha !== buffer.byteLength) {
    throw new Error(`[wire] a frame's lengths must add up to ${buffer.byteLength}`);
  }
  const time = (at) => Number(view.getBigUint64(at, true)) / 1000 || null;
  return {
    format: view.getUint8(4),
    transparent: (view.getUint8(5) & 1) !== 0,
    id: view.getUint32(8, true),
    source: view.getUint32(12, true),
    version: view.getUint32(16, true),
    width: view.getUint16(20, true),
    height: view.getUint16(22, true),
    captured: time(24),
    received: time(32),
    taken: time(40),
    made: time(48),
    encoded: time(56),
    colour: new Uint8Array(buffer, header, colour),
    alpha: new Uint8Array(buffer, header + colour, alpha),
  };
}

/** A source picture as the server takes it. captured: ms on this page's clock. */
export function packPicture(id, captured, bytes) {
  const message = new Uint8Array(24 + bytes.byteLength);
  const view = new DataView(message.buffer);
  view.setUint32(0, PICTURE, true);
  view.setUint32(4, id, true);
  view.setFloat64(8, captured, true);
  view.setUint32(16, bytes.byteLength, true);
  message.set(new Uint8Array(bytes), 24);
  return message;
}

/** A picture to be the avatar, as the server takes it; bytes null: the one that was sent before. */
export function packAvatar(id, told, bytes) {
  const text = new TextEncoder().encode(JSON.stringify(told));
  const size = bytes?.byteLength ?? 0;
  const message = new Uint8Array(16 + text.length + size);
  const view = new DataView(message.buffer);
  [AVATAR, id, text.length, size].forEach((value, i) => view.setUint32(4 * i, value, true));
  message.set(text, 16);
  if (bytes) message.set(bytes, 16 + text.length);
  return message;
}

/** The access token: from the address's fragment, which no server sees, and from then on kept for this tab alone. */
export function takeToken() {
  const given = new URLSearchParams(location.hash.slice(1)).get("token");
  if (given) keepToken(given);
  try {
    return given ?? sessionStorage.getItem("hotloop-token");
  } catch {
    return given; // storage is off
  }
}

export function keepToken(token) {
  try {
    sessionStorage.setItem("hotloop-token", token);
  } catch {
    // Storage is off: the fragment still has it.
  }
}

/** What the server says of itself: version, controls, motions, settings' schema. */
export async function describe(token) {
  const headers = token ? { Authorization: `Bearer ${token}` } : {};
  const answer = await fetch("/api/live", { headers, credentials: "omit" }); // no question of the browser's own
  if (!answer.ok) throw Object.assign(new Error(`the server answers ${answer.status}`), { status: answer.status });
  return answer.json();
}

/** The scene that a session's fields move: see warp.js. */
export async function sceneOf(token, session, number) {
  const headers = token ? { Authorization: `Bearer ${token}` } : {};
  const query = new URLSearchParams({ session, number });
  const answer = await fetch(`/api/live/scene?${query}`, { headers, credentials: "omit" });
  if (!answer.ok) throw new Error(`the server answers ${answer.status} for a scene`);
  return new Uint8Array(await answer.arrayBuffer());
}

/** The picture that the server was started with, as a File. */
export async function avatarOf(token) {
  const headers = token ? { Authorization: `Bearer ${token}` } : {};
  const answer = await fetch("/api/live/avatar", { headers, credentials: "omit" });
  if (!answer.ok) throw new Error(`the server answers ${answer.status} for its picture`);
  const named = /filename="([^"]+)"/.exec(answer.headers.get("Content-Disposition") ?? "")?.[1];
  const blob = await answer.blob();
  return new File([blob], named ?? "avatar", { type: blob.type });
}

/**
 * Events, each a CustomEvent with `detail`:
 *   state     "connecting", "live", "lost" (tries again in `wait` ms) or "refused" (`line` says why: a wrong token; it does not)
 *   welcome, settings, avatar, stats, controls, notice (the server's events): what the server said
 *   refused   {line, id} of what was asked for
 *   frame     as parseFrame gives it; whoever draws it calls `ack`
 */
export class Wire extends EventTarget {
  constructor({ role = "viewer", format = "jpeg+alpha", fps = 60, session = null, token = null } = {}) {
    super();
    this.hello = { hello: 1, token, session, role, format, fps };
    this.state = "idle";
    this.session = session;
    this.pings = [];
    this.tries = 0;
    this.pictures = 0;
    this.asked = 0;
  }

  open() {
    clearTimeout(this.again);
    const address = new URL("/api/live/ws", location.href);
    address.protocol = address.protocol === "https:" ? "wss:" : "ws:";
    address.hash = "";
    this.#become("connecting");
    this.line = null;
    this.welcomed = false;
    const socket = new WebSocket(address);
    socket.binaryType = "arraybuffer";
    this.socket = socket;
    socket.onopen = () => {
      this.heard = now();
      this.pings = [];
      socket.send(JSON.stringify({ ...this.hello, session: this.session }));
      this.beat = setInterval(() => this.#ping(), 1000);
    };
    socket.onmessage = (event) => {
      if (socket === this.socket) this.#hear(event.data);
    };
    socket.onclose = (event) => {
      if (socket === this.socket) this.#closed(event);
    };
  }

  close() {
    const socket = this.socket;
    this.socket = null;
    clearTimeout(this.again);
    clearInterval(this.beat);
    socket?.close();
    this.#become("idle");
  }

  get ready() {
    return this.welcomed && this.socket?.readyState === WebSocket.OPEN;
  }

  /** Sends a message; false where nobody is there to hear it. */
  send(message) {
    if (!this.ready) return false;
    this.socket.send(JSON.stringify(message));
    return true;
  }

  /** Asks for other settings -> the number that their answer will carry, or 0. */
  set(settings, blend = 0) {
    const id = ++this.asked;
    return this.send({ set: settings, ...(blend ? { blend } : {}), id }) ? id : 0;
  }

  /** A source picture (JPEG, PNG or WebP), or nothing where the last ones are still on their way: the newest wins. */
  picture(bytes, captured) {
    if (!this.ready || this.socket.bufferedAmount > MOST_WAITING) return false;
    this.socket.send(packPicture(++this.pictures, captured, bytes));
    return true;
  }

  /** A picture's points are to be guessed ({}, or its eyes), or it is to be shown ({points}) -> its answer's number. */
  avatar(told, bytes) {
    const id = ++this.asked;
    if (!this.ready) return 0;
    this.socket.send(packAvatar(id, told, bytes));
    return id;
  }

  /** The frame was shown at this time of ours, or, without one, overtaken by a newer one. */
  ack(frame, canvas = null) {
    if (frame.from !== this.socket) return; // of a connection that is no more
    this.send(canvas === null ? { ack: frame.id } : { ack: frame.id, canvas });
  }

  /** The server's clock - ours, in ms, and by how much that may err; null before the first answer. */
  get clock() {
    if (!this.pings.length) return null;
    return this.pings.reduce((best, one) => (one.error <= best.error ? one : best));
  }

  /** Ms from what a frame shows (captured, or else received) to now; null where a clock is missing, or where it was
   *  made long before it was sent: it is the last one, for who has just come. */
  age(frame) {
    const began = frame.captured ?? frame.received;
    return began === null || !this.clock || frame.encoded - frame.made > STOOD ? null : now() + this.clock.offset - began;
  }

  #ping() {
    if (now() - this.heard > SILENCE) this.socket.close(4000, "silence");
    else if (this.ready) this.send({ ping: now() });
  }

  #hear(data) {
    this.heard = now();
    if (typeof data !== "string") {
      try {
        this.#tell("frame", Object.assign(parseFrame(data), { from: this.socket }));
      } catch (error) {
        this.#tell("refused", { line: error.message });
      }
      return;
    }
    const said = JSON.parse(data);
    if ("welcome" in said) {
      this.welcomed = true;
      this.session = said.session;
      this.tries = 0;
      this.#become("live");
      this.#tell("welcome", said);
      this.#ping();
    } else if ("pong" in said) {
      const trip = this.heard - said.pong;
      this.pings = [...this.pings, { offset: said.server - (said.pong + this.heard) / 2, error: trip / 2 }].slice(-PINGS);
    } else if ("ping" in said) this.send({ pong: said.ping, client: now() });
    else if ("error" in said) {
      if (!this.welcomed) this.line = said.error;
      this.#tell("refused", { line: said.error, id: said.id });
    } else if ("avatar" in said) this.#tell("avatar", said);
    else if ("settings" in said) this.#tell("settings", said);
    else if ("stats" in said) this.#tell("stats", said.stats);
    else if ("controls" in said) this.#tell("controls", said.controls);
    else if ("event" in said) this.#tell("notice", said);
  }

  #closed(event) {
    clearInterval(this.beat);
    const welcomed = this.welcomed;
    this.welcomed = false;
    if (!welcomed && event.code === BUSY) this.session = null; // of a session that is no more: the main one
    if (!welcomed && event.code === REFUSED) {
      this.#become("refused", { line: this.line ?? event.reason });
      return;
    }
    const wait = Math.min(FIRST_WAIT * 2 ** this.tries++, LONGEST_WAIT) * (0.75 + Math.random() / 2);
    this.again = setTimeout(() => this.open(), wait);
    this.#become("lost", { wait, line: this.line });
  }

  #become(state, more = {}) {
    this.state = state;
    this.#tell("state", { state, ...more });
  }

  #tell(name, detail) {
    this.dispatchEvent(new CustomEvent(name, { detail }));
  }
}
