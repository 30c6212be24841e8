"use strict";
// Keeps the page true: the watch stream says what has changed, the server renders it, this puts it in place.
// What comes from outside reaches the page only as the server's escaped HTML, or (log lines) as text nodes.

const WATCH = "/v1/actions/invocations/watch";
const MAX_ROWS = Number(document.body.dataset.maxRows);
const TERMINAL = new Set(document.body.dataset.terminal.split(",").map(Number));
const MAX_LINES = 2000; // of a log, on the page
const MAX_LINE = 20000; // characters of a line
const MAX_NAMED = 100; // rows asked for by name; more, and all are
const PAUSE = 250; // milliseconds between two requests for rows
const HIDDEN_FOR = 20000; // milliseconds after which a hidden page gives its connections back

const RECONNECT = 3000; // milliseconds until a stream that broke is opened again
const SESSION = "invocations-session"; // the half of the session that is no cookie

const [main] = document.getElementsByTagName("main");
const [rows, none, detail, facts, log, link] =
  ["rows", "none", "detail", "facts", "log", "link"].map((id) => document.getElementById(id));
const pause = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));

// -- the session: its cookie goes to every port of this host, so the script's own half goes with each request

function headers(more) {
  return { "X-Invocations-Session": localStorage.getItem(SESSION) || "", ...more };
}

// Reads server-sent events as EventSource does, which can't send headers.
class Stream extends EventTarget {
  constructor(address) {
    super();
    this.address = address;
    this.closed = false;
    this.ready = false; // every change from here on arrives
    this.last = "";
    this.aborter = new AbortController();
    this.run();
  }

  close() {
    this.closed = true;
    this.aborter.abort();
  }

  async run() {
    while (!this.closed) {
      await this.connect().catch(() => {}); // the server can't be reached, or the stream broke
      this.ready = false;
      if (this.aborter.signal.aborted) return;
      this.dispatchEvent(new Event("error"));
      if (!this.closed) await pause(RECONNECT);
    }
  }

  async connect() {
    const answer = await fetch(this.address, {
      credentials: "same-origin",
      cache: "no-store",
      signal: this.aborter.signal,
      headers: headers(this.last && { "Last-Event-ID": this.last }),
    });
    if (!answer.ok) {
      this.closed = true; // refused: asking again the same way is of no use
      return;
    }
    const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
    let text = "";
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      const blocks = (text + value).split("\n\n");
      text = blocks.pop();
      for (const block of blocks) if (!this.closed) this.hand(block);
    }
  }

  hand(block) {
    let [name, data] = ["message", null];
    for (const line of block.split("\n")) {
      const colon = line.indexOf(": ");
      const value = line.slice(colon + 2);
      if (line.startsWith("event: ")) name = value;
      else if (line.startsWith("data: ")) data = value;
      else if (line.startsWith("id: ")) this.last = value;
    }
    if (data !== null) this.dispatchEvent(new MessageEvent(name, { data }));
  }
}

// -- times: the server's UTC in the reader's own zone, durations that go on

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
  duration.textContent = spelled((performance.now() - duration.dataset.began) / 1000);
}

function humanise(root) {
  const today = new Date().toDateString();
  for (const time of root.querySelectorAll("time")) {
    const moment = new Date(time.dateTime);
    time.textContent = moment.toDateString() === today ? clock.format(moment) : `${day.format(moment)}, ${clock.format(moment)}`;
    time.title = full.format(moment);
  }
  for (const duration of root.querySelectorAll(".duration")) {
    duration.dataset.began = performance.now() - Number(duration.dataset.seconds) * 1000;
    tick(duration);
  }
}

setInterval(() => document.querySelectorAll(".duration.going").forEach(tick), 1000);

// -- the list

const changed = new Set();
let allChanged = false;
let asking = false;

async function ask(path) {
  const answer = await fetch(path, { credentials: "same-origin", headers: headers() });
  if (answer.status === 401) sessionEnded();
  else if (!answer.ok && answer.status !== 404) throw new Error(`${path}: ${answer.status}`);
  else return answer.text();
  return null;
}

async function refresh() {
  if (asking) return;
  asking = true;
  try {
    while (allChanged || changed.size) {
      const all = allChanged || changed.size > MAX_NAMED;
      const ids = [...changed];
      allChanged = false;
      changed.clear();
      const html = await ask(all ? "/page/rows" : `/page/rows?ids=${encodeURIComponent(ids.join(","))}`);
      if (html === null) return;
      place(html, all);
      if (all && stream && stream.ready) say("live", "Live"); // not before: the list would still be of another time
      if (selected && (all || ids.includes(selected))) await showFacts();
      await pause(PAUSE);
    }
  } catch {
    allChanged = true; // the server can't be reached: when the stream is back, all is asked for
  } finally {
    asking = false;
  }
}

function place(html, all) {
  const template = document.createElement("template");
  template.innerHTML = html;
  humanise(template.content);
  mark(template.content.children);
  const fresh = new Map([...template.content.children].map((row) => [row.dataset.id, row]));
  for (const old of [...rows.children]) {
    const row = fresh.get(old.dataset.id);
    fresh.delete(old.dataset.id);
    if (!row) {
      if (all) old.remove();
      continue;
    }
    update(old, row);
  }
  for (const row of [...fresh.values()].reverse()) {
    const after = [...rows.children].find((other) => Number(other.dataset.created) < Number(row.dataset.created));
    row.classList.add("new");
    rows.insertBefore(row, after || null);
  }
  while (rows.children.length > MAX_ROWS) rows.lastElementChild.remove();
  if (all) none.hidden = false;
}

// Makes a node like a fresh one and keeps what is as it was: a click, a selection or the focus in it goes on.
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

// -- the one that is selected

let selected = selectedByAddress();

function selectedByAddress() {
  const match = /^\/actions\/invocations\/([^/]+)$/.exec(location.pathname);
  return match ? decodeURIComponent(match[1]) : null;
}

function mark(list) {
  for (const row of list) {
    const chosen = row.dataset.id === selected;
    row.classList.toggle("selected", chosen);
    const anchor = row.querySelector("a");
    if (chosen) anchor.setAttribute("aria-current", "true");
    else anchor.removeAttribute("aria-current");
  }
}

async function select(id) {
  selected = id;
  main.classList.toggle("split", Boolean(id));
  detail.hidden = !id;
  mark(rows.children);
  readLog();
  if (id) await showFacts().catch(() => (allChanged = true));
  else document.title = "Invocations";
}

function go(id) {
  if (id === selected) return;
  history.pushState(null, "", id ? `/actions/invocations/${encodeURIComponent(id)}` : "/");
  select(id);
}

async function showFacts() {
  const id = selected;
  const html = await ask(`/page/invocations/${encodeURIComponent(id)}`);
  if (html === null || id !== selected) return;
  facts.innerHTML = html;
  humanise(facts);
  const name = rows.querySelector("tr.selected .action a");
  if (name) document.title = `${name.textContent} · Invocations`;
  if (facts.querySelector("[data-ended=no]") && !logStream) readLog(); // it runs again
}

rows.addEventListener("click", (event) => {
  const row = event.target.closest("tr");
  if (!row || event.ctrlKey || event.metaKey || event.shiftKey || event.altKey) return;
  if (!event.target.closest("a") && !getSelection().isCollapsed) return;
  event.preventDefault();
  go(row.dataset.id);
});

document.getElementById("close").addEventListener("click", (event) => {
  event.preventDefault();
  leave();
});

function leave() {
  const row = rows.querySelector("tr.selected a");
  go(null);
  if (row) row.focus();
}

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

window.addEventListener("popstate", () => select(selectedByAddress()));

// -- its log: read from its beginning, the last lines are kept

let logStream = null;
let unshown = [];
let unshownDropped = false;
let parts = new Map();

function emptyLog() {
  log.replaceChildren();
  log.classList.remove("cut");
  unshown = [];
  parts = new Map();
}

function readLog() {
  if (logStream) logStream.close();
  logStream = null;
  emptyLog();
  if (!selected) return;
  const stream = new Stream(`${WATCH}?logs=true&ids=${encodeURIComponent(selected)}`);
  logStream = stream;
  let [ready, ended] = [false, false];
  const close = () => {
    stream.close();
    if (logStream === stream) logStream = null;
  };
  stream.addEventListener("open", () => {
    ready = false; // it tells everything again
    emptyLog();
  });
  stream.addEventListener("ready", () => (ready = true));
  stream.addEventListener("status", (event) => {
    ended = TERMINAL.has(JSON.parse(event.data).status);
    if (ended && ready) close(); // its last lines are told before its end
  });
  stream.addEventListener("log", (event) => {
    const page = JSON.parse(event.data);
    if (!unshown.length) requestAnimationFrame(showLines);
    unshown.push(...page.items);
    if (unshown.length > 2 * MAX_LINES) {
      unshown.splice(0, unshown.length - MAX_LINES);
      unshownDropped = true;
    }
    if (ended && !page.has_next) close();
  });
  stream.addEventListener("error", () => {
    if (stream.closed) close();
  });
}

function showLines() {
  const following = log.scrollHeight - log.scrollTop - log.clientHeight < 40;
  const shown = document.createDocumentFragment();
  for (const item of unshown) {
    const text = item.log.replace(/\x1b\[[0-9;?]*[A-Za-z]/g, "");
    const begun = item.partial_id && parts.get(item.partial_id);
    if (begun) {
      extend(begun, text);
      continue;
    }
    const line = document.createElement("div");
    line.className = item.process === "action" ? "line" : "line aside";
    const time = document.createElement("time");
    time.dateTime = item.timestamp;
    time.textContent = clock.format(new Date(item.timestamp));
    const words = document.createElement("span");
    line.append(time, words);
    extend(words, text);
    shown.append(line);
    if (item.partial_id) parts = new Map([...parts, [item.partial_id, words]].slice(-8));
  }
  unshown = [];
  log.append(shown);
  const over = log.childElementCount - MAX_LINES;
  for (let n = 0; n < over; n++) log.firstElementChild.remove();
  if (over > 0 || unshownDropped) log.classList.add("cut");
  unshownDropped = false;
  if (following) log.scrollTop = log.scrollHeight;
}

function extend(words, text) {
  const room = MAX_LINE - words.textContent.length;
  words.append(text.slice(0, Math.max(room, 0)));
  words.classList.toggle("cut", text.length > room || words.classList.contains("cut"));
}

// -- the stream

let stream = null;
let hiddenTimer = 0;

function say(state, text) {
  link.dataset.state = state;
  if (link.textContent !== text) link.textContent = text;
}

function connect() {
  if (stream) stream.close();
  const own = new Stream(WATCH);
  stream = own;
  own.addEventListener("ready", () => {
    own.ready = true;
    allChanged = true; // also what changed between the page's making and now
    refresh();
  });
  own.addEventListener("status", (event) => {
    changed.add(JSON.parse(event.data).invocation_id);
    refresh();
  });
  own.addEventListener("error", async () => {
    if (own !== stream) return;
    say("lost", "Connection lost, reconnecting…");
    if (!own.closed) return; // it resumes by itself
    await pause(RECONNECT);
    if (own !== stream) return;
    const reachable = await ask("/page/rows?ids=none").catch(() => "");
    if (reachable !== null && own === stream) reconnect();
  });
}

function reconnect() {
  connect();
  if (selected && !logStream) readLog();
}

function disconnect() {
  for (const open of [stream, logStream]) if (open) open.close();
  stream = logStream = null;
}

function sessionEnded() {
  disconnect();
  say("ended", "Your session has ended. ");
  const again = document.createElement("a");
  again.href = selected ? `/login?invocation_id=${encodeURIComponent(selected)}` : "/login";
  again.textContent = "Log in";
  link.append(again);
}

// A browser opens six connections to one host at most: a page that nobody looks at must not hold two of them.
document.addEventListener("visibilitychange", () => {
  clearTimeout(hiddenTimer);
  if (link.dataset.state === "ended") return;
  if (document.hidden) hiddenTimer = setTimeout(disconnect, HIDDEN_FOR);
  else if (!stream) reconnect();
});

if (location.search) history.replaceState(null, "", location.pathname);
humanise(document);
connect();
readLog();
ask("/page/who").then((html) => html && (document.getElementById("who").innerHTML = html), () => {});
if (selected) showFacts().catch(() => (allChanged = true));
