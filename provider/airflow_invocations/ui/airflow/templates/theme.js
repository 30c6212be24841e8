"use strict";
// Dresses the page as Airflow's own is dressed: light or dark, and its colours where it says them.

const outer = (() => {
  try {
    return window.parent === window ? null : window.parent.document;
  } catch {
    return null; // a page of somebody else's, which has nothing to say here
  }
})();

const COLOURS = {
  ground: "bg", sunken: "bg-subtle", hover: "bg-muted", chosen: "brand-muted", text: "fg", muted: "fg-muted",
  line: "border", accent: "brand-fg", grey: "queued-fg", blue: "running-fg", green: "success-fg", red: "failed-fg",
};

function dress() {
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

dress();
if (outer) new MutationObserver(dress).observe(outer.documentElement, { attributeFilter: ["class"] });
else window.addEventListener("storage", dress);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", dress);
