// Every control as it arrives: its value, who holds it, how old it is; and what each source sent.

import { Wire, takeToken } from "./wire.js";
import { $, all, make } from "./widgets.js";
import "./theme.js";

const token = takeToken();
const session = new URLSearchParams(location.hash.slice(1)).get("session");
const wire = new Wire({ role: "monitor", format: "none", session, token });
const rows = new Map();
const hotloop = { wire, heard: 0 };
globalThis.hotloop = hotloop;

function row({ name, low, high }) {
  const bar = make("i");
  const gauge = make("div", { class: "gauge", role: "presentation" }, bar);
  const [value, source] = [make("output"), make("small")];
  const made = make("div", { class: "control idle", "data-name": name }, make("span", { title: name }, name), gauge, value, source);
  const zero = Math.min(Math.max(-low / (high - low), 0), 1);
  gauge.style.setProperty("--zero", `${100 * zero}%`);
  rows.set(name, { made, bar, value, source, low, high, zero });
  return made;
}

function show({ name, value, source, added = [], age, rate }) {
  const one = rows.get(name);
  const at = (value - one.low) / (one.high - one.low);
  one.bar.style.transform = `translateX(${100 * Math.min(at, one.zero)}%) scaleX(${Math.abs(at - one.zero)})`;
  one.value.textContent = Math.abs(one.high) > 2 ? value.toFixed(1) : value.toFixed(2);
  one.source.textContent = [source ?? "idle", ...added.map((more) => `+ ${more}`)].join(" ");
  one.source.title = source && age !== null ? `${Math.round(1000 * age)} ms old, ${rate.toFixed(0)} a second` : "";
  one.made.classList.toggle("idle", !source && !added.length);
}

function told(source) {
  const { name, age, messages = 0, clamped = 0, refused = 0, unknown = 0, late = 0, said, names = {} } = source;
  const faults = Object.entries({ "held in range": clamped, refused, unknown, late }).filter(([, count]) => count);
  return make("article", { class: age > 1 ? "quiet" : "" },
    make("h3", {}, name, make("small", {}, age > 1 ? `silent for ${age.toFixed(0)} s` : "sending")),
    make("p", {}, `${messages.toLocaleString("en")} messages`, ...faults.map(([what, count]) => `, ${count} ${what}`)),
    ...(Object.keys(names).length ? [make("p", {}, `no controls: ${Object.keys(names).slice(0, 6).join(", ")}`)] : []),
    ...(said ? [make("p", { class: "said" }, said)] : []));
}

wire.addEventListener("controls", ({ detail }) => {
  const controls = detail.controls ?? [];
  const fresh = controls.filter(({ name }) => !rows.has(name));
  $("#table").append(...fresh.map(row));
  if (fresh.length) filter();
  controls.forEach(show);
  $("#sources").replaceChildren(...(detail.sources ?? []).map(told));
  ++hotloop.heard;
});

const STATES = { connecting: "Connecting", live: "Live", lost: "Back in a moment", refused: "Refused", idle: "Off" };
wire.addEventListener("state", ({ detail }) => {
  $("#state").dataset.state = detail.state;
  $("#state span").textContent = detail.line ?? STATES[detail.state];
});

function filter() {
  const wanted = $("#filter").value.trim().toLowerCase();
  for (const one of all(".control")) one.hidden = !one.dataset.name.toLowerCase().includes(wanted);
}
$("#filter").addEventListener("input", filter);
$("#held").addEventListener("change", ({ target }) => $("#table").classList.toggle("held", target.checked));

wire.open();
