"use strict";
// What both pages do: times, rows that keep their nodes, the keyboard, and the log of the selected invocation.
// A value from outside reaches the page as the server's escaped HTML or, for log lines, as a text node.
// The page's own script follows in the same element; it defines `selected` and `leave`.

const MAX_LINES = 2000; // of a log, on the page
const MAX_LINE = 20000; // characters of a line

const [main] = document.getElementsByTagName("main");
const [rows, detail, facts, log, link] =
  ["rows", "detail", "facts", "log", "link"].map((id) => document.getElementById(id));
const pause = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));

function say(state, text) {
  link.dataset.state = state;
  if (link.textContent !== text) link.textContent = text;
}

// -- times: the server's UTC in the reader's own zone, and durations that grow

const clock = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit", second: "2-digit", hourCycle: "h23" });
const day = new Intl.DateTimeFormat(undefined, { day: "numeric", month: "short" });
const full = new Intl.DateTimeFormat(undefined, { dateStyle: "full", timeStyle: "long" });

function spelled(seconds) {
  if (seconds < 10) return `${seconds.toFixed(1)} s`;
  const [s, m, h] = [Math.floor(seconds % 60), Math.floor(seconds / 60) % 60, Math.floor(seconds / 3600)];
  const two = (number) => String(number).padStart(2, "0");
  return h ? `${h} h ${two(m)} min` : m ? `${m} min ${two(s)} s` : `${s} s`;
}

function tick(duration) {
  const { began, seconds } = duration.dataset;
  duration.textContent = spelled(began === undefined ? Number(seconds) : (performance.now() - began) / 1000);
}

function localise(root) {
  const today = new Date().toDateString();
  for (const time of root.querySelectorAll("time")) {
    const moment = new Date(time.dateTime);
    time.textContent = moment.toDateString() === today ? clock.format(moment) : `${day.format(moment)}, ${clock.format(moment)}`;
    time.title = full.format(moment);
  }
  for (const duration of root.querySelectorAll(".duration")) {
    if (duration.classList.contains("going")) duration.dataset.began = performance.now() - Number(duration.dataset.seconds) * 1000;
    tick(duration);
  }
}

setInterval(() => document.querySelectorAll(".duration.going").forEach(tick), 1000);

// -- rows and facts

// Make a node like a fresh one, keeping unchanged nodes: a click, a selection or the focus in them survives.
function update(old, fresh) {
  if (old.isEqualNode(fresh)) return;
  if (old.nodeName !== fresh.nodeName || old.childNodes.length !== fresh.childNodes.length) {
    old.replaceWith(fresh);
    return;
  }
  if (old.nodeType === Node.TEXT_NODE) old.data = fresh.data;
  for (const { name } of [...(old.attributes || [])]) if (!fresh.hasAttribute(name)) old.removeAttribute(name);
  for (const { name, value } of fresh.attributes || []) old.setAttribute(name, value);
  const parts = [...fresh.childNodes];
  [...old.childNodes].forEach((part, index) => update(part, parts[index]));
}

function rowOf(key) {
  return [...rows.children].find((row) => row.dataset.key === key) || null;
}

function mark(list, key) {
  for (const row of list) {
    const chosen = row.dataset.key === key;
    row.classList.toggle("selected", chosen);
    const anchor = row.querySelector(".action a");
    if (chosen) anchor.setAttribute("aria-current", "true");
    else anchor.removeAttribute("aria-current");
  }
}

function showDetail(isOpen) {
  main.classList.toggle("split", isOpen);
  detail.hidden = !isOpen;
}

function placeFacts(html) {
  const template = document.createElement("template");
  template.innerHTML = html;
  localise(template.content);
  const fresh = template.content.querySelector(".facts, .message");
  const old = facts.firstElementChild;
  if (old) update(old, fresh);
  else facts.append(fresh);
  return facts.firstElementChild;
}

document.getElementById("close").addEventListener("click", () => leave());

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === "Escape" && selected) leave();
  const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
  const row = document.activeElement.closest("#rows tr");
  if (!step || !(row || document.activeElement === document.body)) return;
  const next = row ? row[step > 0 ? "nextElementSibling" : "previousElementSibling"] : rows.firstElementChild;
  if (!next) return;
  event.preventDefault();
  next.querySelector("a").focus();
  next.scrollIntoView({ block: "nearest" });
});

// -- the log: read from its beginning; the last lines stay

let parts = new Map(); // the texts of unfinished lines, by the id that their parts share

function emptyLog() {
  log.replaceChildren();
  log.classList.remove("cut", "over");
  delete log.dataset.none;
  parts = new Map();
}

// Each line: its time, text, the id of the line that it is a part of, and whether it is not the action's own.
function showLines(lines) {
  const following = log.scrollHeight - log.scrollTop - log.clientHeight < 40;
  const shown = document.createDocumentFragment();
  for (const { time, text, part, aside } of lines) {
    const plain = text.replace(/\x1b\[[0-9;?]*[A-Za-z]/g, "");
    const begun = part && parts.get(part);
    if (begun) {
      extend(begun, plain);
      continue;
    }
    const line = document.createElement("div");
    line.className = aside ? "line aside" : "line";
    const when = document.createElement("time");
    when.dateTime = time;
    when.textContent = clock.format(new Date(time));
    const words = document.createElement("span");
    line.append(when, words);
    extend(words, plain);
    shown.append(line);
    if (part) parts = new Map([...parts, [part, words]].slice(-8));
  }
  log.append(shown);
  const over = log.childElementCount - MAX_LINES;
  for (let n = 0; n < over; n++) log.firstElementChild.remove();
  if (over > 0) log.classList.add("cut");
  if (following) log.scrollTop = log.scrollHeight;
}

function extend(words, text) {
  const room = MAX_LINE - words.textContent.length;
  words.append(text.slice(0, Math.max(room, 0)));
  words.classList.toggle("cut", text.length > room || words.classList.contains("cut"));
}
