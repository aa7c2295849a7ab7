// Exchanges the parts of the page that have changed, and says when the daemon is silent. The page
// is whole without this.
"use strict";

// The daemon sends something every five seconds.
const SILENCE = 15000;

const live = document.getElementById("live");
let heard = Date.now(); // by this machine's clock
let offset = null; // the daemon's clock less this one's
let told = live.textContent.replace(/^as of /, "");

// As the daemon's words: two units for what goes on, one for what is over.
function brief(seconds) {
  const s = Math.floor(seconds);
  if (s < 60) return `${s} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min ${s % 60} s`;
  if (s < 86400) return `${Math.floor(s / 3600)} h ${Math.floor((s % 3600) / 60)} min`;
  return `${Math.floor(s / 86400)} d ${Math.floor((s % 86400) / 3600)} h`;
}

function roughly(seconds) {
  const s = Math.floor(seconds);
  if (s < 60) return `${s} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min`;
  if (s < 86400) return `${Math.floor(s / 3600)} h`;
  return `${Math.floor(s / 86400)} d`;
}

function tick() {
  const silent = Date.now() - heard > SILENCE || source.readyState !== EventSource.OPEN;
  if (silent !== document.body.classList.contains("stale")) {
    document.body.classList.toggle("stale", silent);
    live.textContent = silent ? `No word from the daemon: this is as of ${told}` : "live";
  }
  // What is not known to go on stands still.
  if (silent || offset === null) return;
  const now = Date.now() + offset;
  for (const time of document.querySelectorAll("time[data-ago], time[data-since]")) {
    const past = Math.max(0, now - Date.parse(time.dateTime)) / 1000;
    const since = "since" in time.dataset;
    const text = since ? brief(past) : past < 1 ? "now" : `${roughly(past)} ago`;
    if (time.textContent !== text) time.textContent = text;
  }
}

// Nobody loses what they are selecting, or where they are with the keyboard.
function exchange(element, html) {
  const selection = document.getSelection();
  if (!selection.isCollapsed && selection.containsNode(element, true)) return;
  const focused = element.contains(document.activeElement) && document.activeElement.getAttribute("href");
  element.innerHTML = html;
  if (focused) {
    const again = [...element.querySelectorAll("a")].find((a) => a.getAttribute("href") === focused);
    if (again) again.focus({ preventScroll: true });
  }
}

const source = new EventSource(document.body.dataset.events);

source.onmessage = (message) => {
  const news = JSON.parse(message.data);
  heard = Date.now();
  offset = Date.parse(news.at) - heard;
  told = `${news.at.slice(0, 19).replace("T", " ")} UTC`;
  for (const [id, html] of Object.entries(news.parts)) {
    const element = document.getElementById(id);
    if (element) exchange(element, html);
  }
  if (live.textContent !== "live") live.textContent = "live";
  document.body.classList.add("live");
  tick();
};

// A refusal ends an event source for good; a lost connection doesn't. The page tries again, too.
source.onerror = () => {
  tick();
  if (source.readyState === EventSource.CLOSED) setTimeout(() => location.reload(), SILENCE);
};

setInterval(tick, 1000);
