// Only the avatar, on a transparent canvas: for OBS's browser source.
//
// In the fragment, which no server sees: token, session. In the query: mode=warp (a scene once, then fields),
// fps (the most there shall be).

import { Painter } from "./canvas.js";
import { Wire, now, sceneOf, takeToken } from "./wire.js";

const query = new URLSearchParams(location.search);
const fragment = new URLSearchParams(location.hash.slice(1));
const line = document.querySelector("#line");

function say(text) {
  line.hidden = !text;
  line.textContent = text ?? "";
}

try {
  const wire = new Wire({
    role: "viewer",
    format: query.get("mode") === "warp" ? "warp" : "jpeg+alpha",
    fps: Number(query.get("fps")) || 60,
    session: fragment.get("session"),
    token: takeToken(),
  });
  const painter = new Painter(document.querySelector("#avatar"), {
    scene: (number) => sceneOf(wire.hello.token, wire.session, number),
  });
  const hotloop = { wire, painter, frame: null, drawn: 0 };
  globalThis.hotloop = hotloop;
  wire.addEventListener("frame", async ({ detail: frame }) => {
    let drawn = false;
    try {
      drawn = await painter.paint(frame);
    } catch (error) {
      say(error.message);
    }
    wire.ack(frame, drawn ? now() : null);
    if (drawn) {
      hotloop.frame = { id: frame.id, version: frame.version, format: frame.format };
      ++hotloop.drawn;
    }
  });
  wire.addEventListener("state", ({ detail }) => say(detail.state === "refused" ? detail.line : null)); // else the last frame stays
  wire.open();
} catch (error) {
  say(error.message);
}
