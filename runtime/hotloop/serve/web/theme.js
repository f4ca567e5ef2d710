// Light or dark: as the system has it, until someone chooses; the choice is kept by this browser.

const KEY = "hotloop-theme";

const kept = () => {
  try {
    return localStorage.getItem(KEY);
  } catch {
    return null; // storage is off
  }
};

function show(theme) {
  if (theme) document.documentElement.dataset.theme = theme;
}

export function dark() {
  const chosen = document.documentElement.dataset.theme;
  return chosen ? chosen === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
}

export function toggle() {
  const theme = dark() ? "light" : "dark";
  show(theme);
  try {
    localStorage.setItem(KEY, theme);
  } catch {
    // Storage is off: it holds for this visit.
  }
}

show(kept());
