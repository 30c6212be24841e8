// Keeps the page true: it asks again and again, the server renders what has changed, this puts it in place.
// Asking is enough here: a stream would hold one of the six connections that a browser has for all of Airflow.
// What comes from outside reaches the page as the server's escaped HTML, or (log lines) as text nodes.

const LIVE = 2000; // milliseconds between two looks where something is under way
const AT_REST = 10000; // and where nothing is
const LONGEST = 30000; // and while the server doesn't answer
const MAX_LINES = 2000; // of a log, on the page
const MAX_READ = 100000; // lines of a log that are read at all
const MAX_LINE = 20000; // characters of a line

const [main] = document.getElementsByTagName("main");
const [rows, detail, facts, log, link, news, platforms] =
  ["rows", "detail", "facts", "log", "link", "news", "platforms"].map((id) => document.getElementById(id));
const pause = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));

// -- times: the server's UTC in the reader's own zone, spans that go on

const clock = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit", second: "2-digit", hourCycle: "h23" });
const day = new Intl.DateTimeFormat(undefined, { day: "numeric", month: "short" });
const full = new Intl.DateTimeFormat(undefined, { dateStyle: "full", timeStyle: "long" });

function spelled(seconds) {
  if (seconds < 10) return `${seconds.toFixed(1)} s`;
  const [s, m, h] = [Math.floor(seconds % 60), Math.floor(seconds / 60) % 60, Math.floor(seconds / 3600)];
  const two = (number) => String(number).padStart(2, "0");
  return h ? `${h} h ${two(m)} min` : m ? `${m} min ${two(s)} s` : `${s} s`;
}

function tick(span) {
  const seconds = Number(span.dataset.seconds);
  span.textContent = spelled(span.dataset.began === undefined ? seconds : (performance.now() - span.dataset.began) / 1000);
}

function humanise(root) {
  const today = new Date().toDateString();
  for (const time of root.querySelectorAll("time")) {
    const moment = new Date(time.dateTime);
    time.textContent = moment.toDateString() === today ? clock.format(moment) : `${day.format(moment)}, ${clock.format(moment)}`;
    time.title = full.format(moment);
  }
  for (const span of root.querySelectorAll(".span")) {
    if (span.classList.contains("going")) span.dataset.began = performance.now() - Number(span.dataset.seconds) * 1000;
    tick(span);
  }
}

setInterval(() => document.querySelectorAll(".span.going").forEach(tick), 1000);

// -- asking

class Ended extends Error {}

async function ask(path, parameters) {
  const answer = await fetch(`${path}?${new URLSearchParams(parameters)}`, { credentials: "same-origin" });
  if (answer.status === 401) throw new Ended();
  return answer;
}

function say(state, text) {
  link.dataset.state = state;
  if (link.textContent !== text) link.textContent = text;
}

// -- the list

const ofRun = document.body.dataset.run === undefined ? {} : { dag_id: document.body.dataset.dag, run_id: document.body.dataset.run };
let version = "";
let isLive = true;

function place(html) {
  news.innerHTML = html;
  const listing = document.getElementById("listing");
  ({ version } = listing.dataset);
  isLive = listing.dataset.live === "yes";
  const content = listing.content;
  humanise(content);
  platforms.replaceChildren(...content.querySelector("ul").children);
  const focused = rows.contains(document.activeElement) ? document.activeElement.closest("tr").dataset.key : null;
  const column = document.activeElement.closest("td")?.cellIndex;
  placeRows([...content.querySelectorAll("tr")]);
  news.replaceChildren(...content.querySelectorAll("p"));
  if (focused) rowOf(focused)?.cells[column].querySelector("a").focus({ preventScroll: true });
}

function placeRows(fresh) {
  mark(fresh);
  const kept = fresh.map((row) => {
    const old = rowOf(row.dataset.key);
    if (old) update(old, row);
    return old || row;
  });
  for (const old of [...rows.children]) if (!kept.includes(old)) old.remove();
  kept.forEach((row, index) => row === rows.children[index] || rows.insertBefore(row, rows.children[index] || null));
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

function rowOf(key) {
  return [...rows.children].find((row) => row.dataset.key === key) || null;
}

async function look() {
  const answer = await ask(document.body.dataset.rows, { ...ofRun, seen: version });
  if (answer.status === 204) return;
  const html = await answer.text();
  if (!answer.ok) throw new Error(`${answer.status}`);
  place(html);
}

async function keepTrue() {
  let wait = isLive ? LIVE : AT_REST;
  for (;;) {
    await pause(wait);
    if (document.hidden) {
      await new Promise((resolve) => document.addEventListener("visibilitychange", resolve, { once: true }));
    }
    try {
      await look();
      if (platforms.querySelector("[data-state=wrong]")) say("lost", "A platform is out of reach, trying again…");
      else say("live", "Live");
      wait = isLive ? LIVE : AT_REST;
    } catch (error) {
      if (error instanceof Ended) return say("ended", "Your session has ended: log in to Airflow again.");
      say("lost", "Airflow doesn't answer, trying again…");
      wait = Math.min(2 * wait, LONGEST);
    }
  }
}

// -- the one that is selected

let selected = null; // its row's data: key, conn, id, dag, run
let reading = 0; // the number of the reading that may still write

function mark(list) {
  for (const row of list) {
    const chosen = selected !== null && row.dataset.key === selected.key;
    row.classList.toggle("selected", chosen);
    if (chosen) row.querySelector(".action a").setAttribute("aria-current", "true");
  }
}

function select(row) {
  selected = row ? { ...row.dataset } : null;
  reading += 1;
  main.classList.toggle("split", Boolean(row));
  detail.hidden = !row;
  history.replaceState(null, "", row ? `#${encodeURIComponent(selected.key)}` : location.pathname + location.search);
  for (const other of rows.querySelectorAll("[aria-current]")) other.removeAttribute("aria-current");
  mark(rows.children);
  facts.replaceChildren();
  emptyLog();
  if (row) follow(reading, { conn_id: selected.conn, invocation_id: selected.id, dag_id: selected.dag, run_id: selected.run });
}

function leave() {
  const row = selected && rowOf(selected.key);
  select(null);
  if (row) row.querySelector(".action a").focus();
}

async function follow(own, parameters) {
  let cursor = null;
  let read = 0;
  for (;;) {
    let wait = LIVE;
    try {
      // The facts first: what is written before an end is there when the end is.
      const ended = await showFacts(own, parameters);
      if (own !== reading) return;
      let page = { more: read < MAX_READ && !log.dataset.none };
      while (page.more) {
        const answer = await ask("log", cursor ? { ...parameters, cursor } : parameters);
        if (own !== reading) return;
        if (answer.status === 404) return;
        if (answer.status === 403) {
          log.dataset.none = "Airflow doesn't let you read this task's logs.";
          break;
        }
        if (!answer.ok) throw new Error(`${answer.status}`);
        page = await answer.json();
        if (own !== reading) return;
        if (!page.kept) {
          log.dataset.none = "This platform keeps no log.";
          break;
        }
        ({ cursor } = page);
        read += page.lines.length;
        showLines(page.lines);
        if (page.cut) log.classList.add("cut");
        if (read >= MAX_READ) page.more = false;
      }
      log.classList.toggle("over", read >= MAX_READ);
      if (ended) wait = AT_REST; // it may run again
    } catch (error) {
      if (error instanceof Ended) return;
      wait = AT_REST;
    }
    await pause(wait);
    if (own !== reading) return;
    if (document.hidden) {
      await new Promise((resolve) => document.addEventListener("visibilitychange", resolve, { once: true }));
    }
  }
}

async function showFacts(own, parameters) {
  const answer = await ask("facts", parameters);
  const html = await answer.text();
  if (own !== reading) return true;
  const template = document.createElement("template");
  template.innerHTML = html;
  const told = template.content.querySelector(".facts, .message");
  humanise(template.content);
  if (!facts.firstElementChild?.isEqualNode(told)) facts.replaceChildren(told);
  return told.dataset.ended === "yes";
}

rows.addEventListener("click", (event) => {
  const row = event.target.closest("tr");
  const anchor = event.target.closest("a");
  if (!row || anchor?.dataset.leave) return;
  event.preventDefault();
  if (!anchor && !getSelection().isCollapsed) return;
  select(row);
});

document.getElementById("close").addEventListener("click", leave);

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

// -- ways out of the frame that Airflow shows this page in, which lets nothing out by itself

document.addEventListener("click", (event) => {
  const anchor = event.target.closest("a[data-leave]");
  if (!anchor || !outer) return;
  event.preventDefault();
  const way = outer.createElement("a");
  way.href = anchor.href;
  way.rel = "noopener noreferrer";
  if (anchor.dataset.leave === "new" || event.ctrlKey || event.metaKey) way.target = "_blank";
  outer.body.append(way);
  way.click();
  way.remove();
});

// -- its log: read from its beginning, the last lines are kept

let parts = new Map();

function emptyLog() {
  log.replaceChildren();
  log.classList.remove("cut", "over");
  delete log.dataset.none;
  parts = new Map();
}

function showLines(lines) {
  const following = log.scrollHeight - log.scrollTop - log.clientHeight < 40;
  const shown = document.createDocumentFragment();
  for (const item of lines) {
    const text = item.text.replace(/\x1b\[[0-9;?]*[A-Za-z]/g, "");
    const begun = item.part && parts.get(item.part);
    if (begun) {
      extend(begun, text);
      continue;
    }
    const line = document.createElement("div");
    line.className = item.aside ? "line aside" : "line";
    const time = document.createElement("time");
    time.dateTime = item.time;
    time.textContent = clock.format(new Date(item.time));
    const words = document.createElement("span");
    line.append(time, words);
    extend(words, text);
    shown.append(line);
    if (item.part) parts = new Map([...parts, [item.part, words]].slice(-8));
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

// -- begin

const wanted = decodeURIComponent(location.hash.slice(1));
place(news.innerHTML);
if (wanted && rowOf(wanted)) select(rowOf(wanted));
keepTrue();
