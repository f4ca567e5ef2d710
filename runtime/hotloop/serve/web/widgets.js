// Small things that several parts of the page use.

export const $ = (selector, within = document) => within.querySelector(selector);
export const all = (selector, within = document) => [...within.querySelectorAll(selector)];

/** An element: make("b", {class: "x", "aria-label": "y", onclick: f}, children). */
export function make(name, given = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(given)) {
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else if (value === true) element.setAttribute(key, "");
    else if (value !== false && value != null) element.setAttribute(key, value);
  }
  element.append(...children);
  return element;
}

/** An icon of the page's sprite. */
export function icon(name) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const use = document.createElementNS("http://www.w3.org/2000/svg", "use");
  use.setAttribute("href", `#i-${name}`);
  svg.setAttribute("aria-hidden", "true");
  svg.append(use);
  return svg;
}

/** Buttons of which one is on: arrows move, Home and End too (WAI-ARIA's radio group and tabs). chosen(button). */
export function choice(group, { state = "aria-checked", chosen }) {
  const buttons = () => all("button", group).filter((one) => !one.disabled && !one.hidden);
  const mark = (button) => {
    for (const one of all("button", group)) {
      one.setAttribute(state, String(one === button));
      one.tabIndex = one === button ? 0 : -1;
    }
    if (!button) {
      const first = buttons()[0];
      if (first) first.tabIndex = 0;
    }
  };
  group.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (button && group.contains(button)) chosen(button);
  });
  group.addEventListener("keydown", (event) => {
    const row = buttons();
    const at = row.indexOf(document.activeElement);
    const to = { ArrowRight: at + 1, ArrowDown: at + 1, ArrowLeft: at - 1, ArrowUp: at - 1, Home: 0, End: row.length - 1 };
    if (at < 0 || !(event.key in to)) return;
    event.preventDefault();
    const next = row.at(to[event.key] % row.length);
    next.focus();
    chosen(next);
  });
  return mark;
}

/** Fills a range's track from its rest (0 where it is in range, else its least) to its value. */
export function fill(range) {
  const [low, high, value] = [range.min, range.max, range.value].map(Number);
  const share = (at) => `${(100 * (at - low)) / (high - low)}%`;
  const rest = low < 0 && high > 0 ? 0 : low;
  range.style.setProperty("--from", share(Math.min(rest, value)));
  range.style.setProperty("--at", share(Math.max(rest, value)));
}

/** Calls `run` at most once each `ms`, the last call always; what it is called with is the newest. */
export function throttled(ms, run) {
  let waiting = null;
  let last = -Infinity;
  return (...given) => {
    clearTimeout(waiting);
    const wait = Math.max(last + ms - performance.now(), 0);
    waiting = setTimeout(() => {
      last = performance.now();
      run(...given);
    }, wait);
  };
}

/** One line for who looks, for a few seconds; the same line twice is one. */
export function toast(line) {
  const place = $("#toasts");
  if (all(".toast", place).some((one) => one.textContent === line)) return;
  while (place.children.length > 2) place.firstChild.remove();
  const shown = make("p", { class: "toast" }, line);
  place.append(shown);
  setTimeout(() => shown.remove(), 6000);
}
