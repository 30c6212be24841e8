"use strict";
// Follows Airflow's theme: light or dark, and its colours where it defines them.

const outer = (() => {
  try {
    return window.parent === window ? null : window.parent.document;
  } catch {
    return null; // another origin's page, which this page can't read
  }
})();

const COLOURS = {
  ground: "bg", sunken: "bg-subtle", hover: "bg-muted", chosen: "brand-muted", text: "fg", muted: "fg-muted",
  line: "border", accent: "brand-fg", grey: "queued-fg", blue: "running-fg", green: "success-fg", red: "failed-fg",
};

function applyTheme() {
  const system = matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
  const root = document.documentElement;
  const chosen = outer ? outer.documentElement.classList : null;
  const kept = outer ? null : localStorage.getItem("theme");
  root.dataset.theme = chosen
    ? chosen.contains("dark") ? "dark" : "light"
    : ["light", "dark"].includes(kept) ? kept : system;
  if (!outer) return;
  const theirs = getComputedStyle(outer.documentElement);
  for (const [own, token] of Object.entries(COLOURS)) {
    const value = theirs.getPropertyValue(`--chakra-colors-${token}`).trim();
    if (value && CSS.supports("color", value)) root.style.setProperty(`--${own}`, value);
  }
}

applyTheme();
if (outer) new MutationObserver(applyTheme).observe(outer.documentElement, { attributeFilter: ["class"] });
else window.addEventListener("storage", applyTheme);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", applyTheme);
