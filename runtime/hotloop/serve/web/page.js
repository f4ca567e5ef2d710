// The page: everything is made here and told of everything else.

import { Face } from "./controls.js";
import { Keys } from "./keys.js";
import { Microphone } from "./microphone.js";
import { Painter } from "./canvas.js";
import { Recorder, save } from "./recorder.js";
import { Settings } from "./settings.js";
import { Source } from "./source.js";
import { Strip } from "./strip.js";
import { Wire, describe, keepToken, now, takeToken } from "./wire.js";
import { $, all, choice, toast } from "./widgets.js";
import * as theme from "./theme.js";

const KEPT = "hotloop-session";
const [stage, avatar, veil] = [$("#stage"), $("#avatar"), $("#veil")];

function kept() {
  try {
    return sessionStorage.getItem(KEPT);
  } catch {
    return null; // storage is off: a reload begins another session
  }
}

const wire = new Wire({ role: "owner", format: "jpeg+alpha", session: kept(), token: takeToken() });
const keys = new Keys();
const strip = new Strip();
const settings = new Settings({ wire, sheet: $("#panel-look") });
const face = new Face({ wire, stage, avatar, words: (name) => settings.express(name) });
const source = new Source({ wire, video: $("#video"), changed: sourced });
const microphone = new Microphone({ send: (weights) => face.put(weights), show: heard });
const recorder = new Recorder({ canvas: avatar, changed: recorded });

/** Runs what the browser or a device may refuse, and says so in one line. */
async function tried(run, otherwise = () => {}) {
  try {
    await run();
  } catch (error) {
    otherwise();
    const refused = error.name === "NotAllowedError" ? "the browser was not allowed to" : error.message || error.name;
    toast(String(refused));
  }
}

// --- The picture ---

function wake(text, still = false) {
  veil.hidden = text === null;
  veil.classList.toggle("still", still);
  if (text !== null) $("span:last-child", veil).textContent = text;
}

let painter = null;
try {
  painter = new Painter(avatar);
} catch (error) {
  wake(error.message, true);
}

wire.addEventListener("frame", async ({ detail: frame }) => {
  let drawn = false;
  try {
    drawn = await painter.paint(frame);
  } catch (error) {
    toast(`A frame could not be drawn: ${error.message}`);
  }
  wire.ack(frame, drawn ? now() : null);
  if (!drawn) {
    ++strip.overtaken;
    return;
  }
  wake(null);
  stage.classList.toggle("whole", !frame.transparent);
  strip.frame(wire.age(frame));
  hotloop.frame = { id: frame.id, version: frame.version, width: frame.width, height: frame.height };
  settings.drawn(frame.version);
  ++hotloop.drawn;
});

// --- The connection ---

const STATES = { connecting: "Connecting", live: "Live", lost: "Back in a moment", refused: "Refused", idle: "Off" };

wire.addEventListener("state", ({ detail }) => {
  const pill = $("#state");
  pill.dataset.state = detail.state;
  $("span", pill).textContent = STATES[detail.state];
  pill.title = detail.line ?? "";
  if (detail.state === "refused") locked(detail.line);
  if (detail.state === "lost") strip.reset();
});

let session = null;
wire.addEventListener("welcome", ({ detail }) => {
  $("#kept").hidden = !detail.recording;
  const again = session !== null;
  // Another session, or a server that was started again and counts from the beginning.
  const begun = again && (session !== detail.session || detail.version < settings.version);
  session = detail.session;
  try {
    sessionStorage.setItem(KEPT, session);
  } catch {
    // Storage is off.
  }
  document.body.dataset.mode = detail.mode;
  source.fit(detail.width, detail.height);
  face.moves = detail.mode !== "restyle";
  able(detail.mode === "restyle", Object.keys(detail.settings ?? {}).length > 0);
  $("#obs-size").textContent = `${detail.width} × ${detail.height}`;
  settings.seen = 0;
  settings.take(detail.settings ?? {}, detail.version ?? 0);
  strip.reset();
  if (begun) settings.again();
  if (again) face.again(); // what a connection held went with it
  source.resend();
});
/** Shows what the session can do: draw from pictures, draw from words. */
function able(pictures, words) {
  const sheet = $("#panel-look");
  if (!words && !sheet.classList.contains("wordless")) open($("#tab-face"));
  sheet.classList.toggle("wordless", !words);
  $("#no-words").hidden = words;
  $("#no-pictures").hidden = pictures;
  $("#source-field").hidden = !pictures;
}

wire.addEventListener("settings", ({ detail }) => {
  settings.answer(detail);
  source.fit(detail.settings?.width, detail.settings?.height);
});
wire.addEventListener("refused", ({ detail }) => {
  if (settings.pending.has(detail.id)) settings.answer(detail);
  else toast(detail.line);
});
wire.addEventListener("stats", ({ detail }) => {
  strip.stats = detail;
});
wire.addEventListener("notice", ({ detail }) => {
  if (detail.event === "worker") {
    const back = detail.state === "ready" || detail.state === "resumed";
    $("#state").dataset.state = back ? "live" : "lost";
    $("#state span").textContent = back ? STATES.live : "Starting again";
  } else if (detail.event === "source" && detail.state === "lost" && source.follows) {
    toast("No new picture reaches the server: the last one stays.");
  }
});
setInterval(() => wire.send({ stats: 1 }), 1000);

async function begin() {
  try {
    const about = await describe(wire.hello.token);
    face.describe(about);
    settings.describe(about);
    face.motions.forEach(({ name, key }) => key && keys.add(key, `Motion: ${name}`, () => face.play(name)));
    if (painter) wire.open();
  } catch (error) {
    if (error.status === 401 || error.status === 403) locked(error.message);
    else setTimeout(begin, 1500); // the server is not up yet
  }
}

function locked(line) {
  wake(line, true);
  if (!$("#token-dialog").open) $("#token-dialog").showModal();
}

$("#token-form").addEventListener("submit", () => {
  wire.hello.token = $("#token").value.trim();
  keepToken(wire.hello.token);
  wake("Connecting");
  begin();
});

// --- Panels, dialogs, theme ---

const tabs = $(".tabs");
const tab = choice(tabs, { state: "aria-selected", chosen: open });
function open(button) {
  tab(button);
  for (const one of all("[role=tab]", tabs)) $(`#${one.getAttribute("aria-controls")}`).hidden = one !== button;
}

$("#theme").addEventListener("click", theme.toggle);

const backdrops = $(".swatches");
const backdrop = choice(backdrops, {
  chosen: (button) => {
    backdrop(button);
    stage.dataset.backdrop = button.dataset.backdrop;
  },
});

/** An address of this server for another window: the session and the token in the fragment, which no server sees. */
function address(path) {
  const parts = new URLSearchParams();
  if (wire.hello.token) parts.set("token", wire.hello.token);
  if (wire.session) parts.set("session", wire.session);
  const fragment = parts.toString();
  return `${location.origin}${path}${fragment ? `#${fragment}` : ""}`;
}

$("#obs").addEventListener("click", () => {
  $("#obs-address").value = address("/view");
  $("#obs-dialog").showModal();
});
$("#copy").addEventListener("click", async () => {
  $("#obs-address").select();
  await tried(() => navigator.clipboard.writeText($("#obs-address").value));
  $("#copy").textContent = "Copied";
  setTimeout(() => ($("#copy").textContent = "Copy"), 1600);
});
for (const link of all("[data-open]")) {
  link.addEventListener("click", () => (link.href = address(new URL(link.href).pathname)));
}

// --- Sources ---

const sources = $("#sources");
const sourceMark = choice(sources, { chosen: (button) => choose(button.dataset.source) });
const ABOUT = {
  none: "You can also drop a picture or film on the avatar.",
  camera: "Your camera’s picture goes to this server and nowhere else.",
  screen: "The window you chose goes to this server and nowhere else.",
  file: "",
};

function choose(kind) {
  if (kind === "none") source.stop();
  else if (kind === "camera") tried(() => source.camera($("#device").value));
  else if (kind === "screen") tried(() => source.screen());
  else $("#file").click();
}

async function sourced(kind, label) {
  sourceMark($(`[data-source="${kind}"]`, sources));
  $("#preview").hidden = kind === "none" || (kind === "file" && !source.address);
  $("#preview").classList.toggle("mirror", kind === "camera");
  $("#preview figcaption").textContent = label || kind;
  $("#source-word").textContent = kind === "file" ? label : ABOUT[kind];
  if (kind !== "camera") {
    $("#device-field").hidden = true;
    return;
  }
  const cameras = (await navigator.mediaDevices.enumerateDevices()).filter((one) => one.kind === "videoinput");
  $("#device-field").hidden = cameras.length < 2;
  const chosen = source.video.srcObject?.getVideoTracks()[0]?.getSettings().deviceId;
  $("#device").replaceChildren(...cameras.map((one, i) => new Option(one.label || `Camera ${i + 1}`, one.deviceId, false, one.deviceId === chosen)));
}

$("#device").addEventListener("change", () => choose("camera"));
$("#file").addEventListener("change", ({ target }) => {
  if (target.files[0]) tried(() => source.file(target.files[0]));
  target.value = "";
});
stage.addEventListener("dragover", (event) => {
  if ($("#source-field").hidden) return;
  event.preventDefault();
  stage.classList.add("drop");
});
stage.addEventListener("dragleave", () => stage.classList.remove("drop"));
stage.addEventListener("drop", (event) => {
  event.preventDefault();
  stage.classList.remove("drop");
  const [file] = event.dataTransfer.files;
  if (file) tried(() => source.file(file));
});

// --- Microphone, recording, pictures ---

const mic = $("#mic");
mic.addEventListener("change", () => listen(mic.checked));

async function listen(on) {
  mic.checked = on;
  if (on) await tried(() => microphone.start(), () => (mic.checked = false));
  else await microphone.stop();
  $("#mic-badge").hidden = !microphone.on;
}

function heard({ level, vowel }) {
  $("#mic-badge meter").value = level;
  $("#mic-badge b").textContent = vowel;
}

function record() {
  tried(() => (recorder.on ? recorder.stop() : recorder.start(microphone.on ? microphone.stream : null)));
}

function recorded(seconds) {
  $("#record").setAttribute("aria-pressed", String(seconds !== null));
  $("#rec").hidden = seconds === null;
  if (seconds !== null) $("#rec span").textContent = `${Math.floor(seconds / 60)}:${String(seconds % 60).padStart(2, "0")}`;
}

function snap() {
  painter?.again();
  avatar.toBlob((blob) => blob && save(blob, "png"));
}

function fullscreen() {
  tried(() => (document.fullscreenElement ? document.exitFullscreen() : stage.requestFullscreen()));
}

$("#record").addEventListener("click", record);
$("#snap").addEventListener("click", snap);
$("#full").addEventListener("click", fullscreen);

// --- Keys ---

["happy", "angry", "cold", "sad", "surprised", "neutral"].forEach((name, i) =>
  keys.add(String(i + 1), name[0].toUpperCase() + name.slice(1), () => face.express(name)),
);
keys.add("/", "Write the prompt", () => {
  open($("#tab-look"));
  $("#prompt").focus();
});
keys.add("D", "Roll another seed", () => $("#panel-look").classList.contains("wordless") || settings.roll());
keys.add("C", "Camera on or off", () => $("#source-field").hidden || choose(source.kind === "camera" ? "none" : "camera"));
keys.add("M", "Microphone on or off", () => listen(!microphone.on));
keys.add("P", "Follow my pointer", () => face.follow(!face.aiming));
keys.add("R", "Record a film", record);
keys.add("S", "Save a picture", snap);
keys.add("F", "Fill the screen", fullscreen);
keys.add("T", "Light or dark", theme.toggle);

/** For tests, and for who scripts the page. */
const hotloop = { wire, painter, strip, face, settings, source, frame: null, drawn: 0 };
globalThis.hotloop = hotloop;
begin();
