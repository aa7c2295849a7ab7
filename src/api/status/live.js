// Replaces the parts of the page that have changed, and shows when the daemon stops responding. The
// page works without this script.
"use strict";

// The daemon sends an update at least every five seconds.
const TIMEOUT = 15000;

const live = document.getElementById("live");
let lastUpdate = Date.now(); // by this machine's clock
let offset = null; // the daemon's clock minus this machine's
let lastTime = live.textContent.replace(/^as of /, "");

// Same format as the server's: two units for an ongoing duration, one for a past one.
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
  const stale = Date.now() - lastUpdate > TIMEOUT || source.readyState !== EventSource.OPEN;
  if (stale !== document.body.classList.contains("stale")) {
    document.body.classList.toggle("stale", stale);
    live.textContent = stale ? `No response from the daemon: showing data as of ${lastTime}` : "live";
  }
  // Without a connection the displayed times stand still.
  if (stale || offset === null) return;
  const now = Date.now() + offset;
  for (const time of document.querySelectorAll("time[data-ago], time[data-since]")) {
    const past = Math.max(0, now - Date.parse(time.dateTime)) / 1000;
    const since = "since" in time.dataset;
    const text = since ? brief(past) : past < 1 ? "now" : `${roughly(past)} ago`;
    if (time.textContent !== text) time.textContent = text;
  }
}

// Keeps the text selection and the keyboard focus.
function replaceContent(element, html) {
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
  const update = JSON.parse(message.data);
  lastUpdate = Date.now();
  offset = Date.parse(update.at) - lastUpdate;
  lastTime = `${update.at.slice(0, 19).replace("T", " ")} UTC`;
  for (const [id, html] of Object.entries(update.parts)) {
    const element = document.getElementById(id);
    if (element) replaceContent(element, html);
  }
  if (live.textContent !== "live") live.textContent = "live";
  document.body.classList.add("live");
  tick();
};

// An error response closes an event source for good, a lost connection doesn't: then reload the page.
source.onerror = () => {
  tick();
  if (source.readyState === EventSource.CLOSED) setTimeout(() => location.reload(), TIMEOUT);
};

setInterval(tick, 1000);
