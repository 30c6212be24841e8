// Polls the server, which renders the changes. A stream would hold one of the six connections that a browser has
// for all of Airflow.

const LIVE = 2000; // milliseconds between two requests while an invocation is active
const AT_REST = 10000; // and while none is
const LONGEST = 30000; // and while the server doesn't respond
const MAX_READ = 100000; // lines of a log that are read at all

const [news, platforms] = ["news", "platforms"].map((id) => document.getElementById(id));

class Ended extends Error {}

async function ask(path, parameters) {
  const answer = await fetch(`${path}?${new URLSearchParams(parameters)}`, { credentials: "same-origin" });
  if (answer.status === 401) throw new Ended();
  return answer;
}

async function untilVisible() {
  if (!document.hidden) return;
  await new Promise((resolve) => document.addEventListener("visibilitychange", resolve, { once: true }));
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
  localise(content);
  platforms.replaceChildren(...content.querySelector("ul").children);
  const focused = rows.contains(document.activeElement) ? document.activeElement.closest("tr").dataset.key : null;
  const column = document.activeElement.closest("td")?.cellIndex;
  placeRows([...content.querySelectorAll("tr")]);
  news.replaceChildren(...content.querySelectorAll("p"));
  if (focused) rowOf(focused)?.cells[column].querySelector("a").focus({ preventScroll: true });
}

function placeRows(fresh) {
  mark(fresh, selected?.key);
  const kept = fresh.map((row) => {
    const old = rowOf(row.dataset.key);
    if (old) update(old, row);
    return old || row;
  });
  for (const old of [...rows.children]) if (!kept.includes(old)) old.remove();
  kept.forEach((row, index) => row === rows.children[index] || rows.insertBefore(row, rows.children[index] || null));
}

async function poll() {
  const answer = await ask(document.body.dataset.rows, { ...ofRun, seen: version });
  if (answer.status === 204) return;
  const html = await answer.text();
  if (!answer.ok) throw new Error(`${answer.status}`);
  place(html);
}

async function keepPolling() {
  let wait = isLive ? LIVE : AT_REST;
  for (;;) {
    await pause(wait);
    await untilVisible();
    try {
      await poll();
      if (platforms.querySelector("[data-state=wrong]")) say("lost", "A platform is unavailable, retrying…");
      else say("live", "Live");
      wait = isLive ? LIVE : AT_REST;
    } catch (error) {
      if (error instanceof Ended) return say("ended", "Your session has ended: log in to Airflow again.");
      say("lost", "Airflow doesn't respond, retrying…");
      wait = Math.min(2 * wait, LONGEST);
    }
  }
}

// -- the selected invocation

let selected = null; // its row's data: key, conn, id, dag, run
let reading = 0; // the number of the selection whose responses still count

function select(row) {
  selected = row ? { ...row.dataset } : null;
  reading += 1;
  showDetail(Boolean(row));
  history.replaceState(null, "", row ? `#${encodeURIComponent(selected.key)}` : location.pathname + location.search);
  mark(rows.children, selected?.key);
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
      // The facts first: a log is complete once they say that the invocation has ended.
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
    await untilVisible();
  }
}

async function showFacts(own, parameters) {
  const answer = await ask("facts", parameters);
  const html = await answer.text();
  if (own !== reading) return true;
  return placeFacts(html).dataset.ended === "yes";
}

rows.addEventListener("click", (event) => {
  const row = event.target.closest("tr");
  const anchor = event.target.closest("a");
  if (!row || anchor?.dataset.leave) return;
  event.preventDefault();
  if (!anchor && !getSelection().isCollapsed) return;
  select(row);
});

// -- links out of the frame that Airflow shows this page in; its sandbox blocks the frame's own navigation

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

// -- start

const wanted = decodeURIComponent(location.hash.slice(1));
place(news.innerHTML);
if (wanted && rowOf(wanted)) select(rowOf(wanted));
keepPolling();
