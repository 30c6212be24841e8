// Follows the watch stream, which reports changes; the server renders them.

const WATCH = "/v1/actions/invocations/watch";
const MAX_ROWS = Number(document.body.dataset.maxRows);
const TERMINAL = new Set(document.body.dataset.terminal.split(",").map(Number));
const MAX_NAMED = 100; // rows fetched by id; with more changes, all rows are fetched
const PAUSE = 250; // milliseconds between two requests for rows
const HIDDEN_FOR = 20000; // milliseconds after which a hidden page closes its connections
const RECONNECT = 3000; // milliseconds until a broken stream is opened again
const SESSION = "invocations-session"; // the part of the session that is not in the cookie

const none = document.getElementById("none");

// -- the session: browsers send its cookie to every port of this host, so each request also sends the other part

function headers(more) {
  return { "X-Invocations-Session": localStorage.getItem(SESSION) || "", ...more };
}

// Reads server-sent events like EventSource, which can't send headers.
class Stream extends EventTarget {
  constructor(address) {
    super();
    this.address = address;
    this.closed = false;
    this.ready = false; // every later change arrives
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
      await this.connect().catch(() => {}); // no connection, or the stream broke
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
      this.closed = true; // rejected: the same request would be rejected again
      return;
    }
    const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
    let text = "";
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      const blocks = (text + value).split("\n\n");
      text = blocks.pop();
      for (const block of blocks) if (!this.closed) this.dispatch(block);
    }
  }

  dispatch(block) {
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

// -- the list

const changed = new Set();
let allChanged = false;
let asking = false;

async function ask(path, method = "GET") {
  const answer = await fetch(path, { method, credentials: "same-origin", headers: headers() });
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
      if (all && stream && stream.ready) say("live", "Live"); // not before: the list would be older than the stream
      // Facts also show what an invocation has invoked.
      if (selected && (all || ids.includes(selected) || facts.querySelector(".tree, [data-ended=no]"))) await showFacts();
      await pause(PAUSE);
    }
  } catch {
    allChanged = true; // no connection: all rows are fetched when the stream is back
  } finally {
    asking = false;
  }
}

function place(html, all) {
  const template = document.createElement("template");
  template.innerHTML = html;
  localise(template.content);
  mark(template.content.children, selected);
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

// -- the selected invocation

let selected = selectedByAddress();

function selectedByAddress() {
  const match = /^\/actions\/invocations\/([^/]+)$/.exec(location.pathname);
  return match ? decodeURIComponent(match[1]) : null;
}

async function select(id) {
  selected = id;
  showDetail(Boolean(id));
  mark(rows.children, id);
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
  placeFacts(html);
  const name = rows.querySelector("tr.selected .action a");
  if (name) document.title = `${name.textContent} · Invocations`;
  if (facts.querySelector("[data-ended=no]") && !logStream) readLog(); // it runs again
}

facts.addEventListener("click", async (event) => {
  const button = event.target.closest("[data-cancel]");
  const anchor = event.target.closest("a");
  if (anchor && !(event.ctrlKey || event.metaKey || event.shiftKey || event.altKey)) {
    event.preventDefault();
    go(decodeURIComponent(anchor.pathname.split("/").pop()));
  }
  if (!button || !confirm("Cancel this invocation and all that it has invoked?")) return;
  button.disabled = true;
  const id = selected;
  const html = await ask(`/page/invocations/${encodeURIComponent(id)}/cancel`, "POST").catch(() => null);
  if (html !== null && id === selected) placeFacts(html);
  else button.disabled = false;
});

rows.addEventListener("click", (event) => {
  const row = event.target.closest("tr");
  if (!row || event.ctrlKey || event.metaKey || event.shiftKey || event.altKey) return;
  if (!event.target.closest("a") && !getSelection().isCollapsed) return;
  event.preventDefault();
  go(row.dataset.id);
});

function leave() {
  const row = rows.querySelector("tr.selected a");
  go(null);
  if (row) row.focus();
}

window.addEventListener("popstate", () => select(selectedByAddress()));

// -- its log

let logStream = null;
let unshown = []; // lines that arrived since the last frame

function clearLog() {
  emptyLog();
  unshown = [];
}

function readLog() {
  if (logStream) logStream.close();
  logStream = null;
  clearLog();
  if (!selected) return;
  const stream = new Stream(`${WATCH}?logs=true&ids=${encodeURIComponent(selected)}`);
  logStream = stream;
  let [ready, ended] = [false, false];
  const close = () => {
    stream.close();
    if (logStream === stream) logStream = null;
  };
  stream.addEventListener("open", () => {
    ready = false; // the stream sends everything again
    clearLog();
  });
  stream.addEventListener("ready", () => (ready = true));
  stream.addEventListener("status", (event) => {
    ended = TERMINAL.has(JSON.parse(event.data).status);
    if (ended && ready) close(); // its last lines arrive before its end
  });
  stream.addEventListener("log", (event) => {
    const page = JSON.parse(event.data);
    if (!unshown.length) requestAnimationFrame(showUnshown);
    unshown.push(...page.items.map(shownLine));
    if (unshown.length > 2 * MAX_LINES) {
      unshown.splice(0, unshown.length - MAX_LINES);
      log.classList.add("cut");
    }
    if (ended && !page.has_next) close();
  });
  stream.addEventListener("error", () => {
    if (stream.closed) close();
  });
}

function shownLine(item) {
  return { time: item.timestamp, text: item.log, part: item.partial_id, aside: item.process !== "action" };
}

function showUnshown() {
  showLines(unshown);
  unshown = [];
}

// -- the stream

let stream = null;
let hiddenTimer = 0;

function connect() {
  if (stream) stream.close();
  const own = new Stream(WATCH);
  stream = own;
  own.addEventListener("ready", () => {
    own.ready = true;
    allChanged = true; // also what changed since the page was rendered
    refresh();
  });
  own.addEventListener("status", (event) => {
    changed.add(JSON.parse(event.data).invocation_id);
    refresh();
  });
  own.addEventListener("error", async () => {
    if (own !== stream) return;
    say("lost", "Connection lost, reconnecting…");
    if (!own.closed) return; // it reconnects by itself
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

// A browser opens at most six connections to one host: a hidden page must not hold two of them.
document.addEventListener("visibilitychange", () => {
  clearTimeout(hiddenTimer);
  if (link.dataset.state === "ended") return;
  if (document.hidden) hiddenTimer = setTimeout(disconnect, HIDDEN_FOR);
  else if (!stream) reconnect();
});

if (location.search) history.replaceState(null, "", location.pathname);
localise(document);
connect();
readLog();
ask("/page/who").then((html) => html && (document.getElementById("who").innerHTML = html), () => {});
if (selected) showFacts().catch(() => (allChanged = true));
