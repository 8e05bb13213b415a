// @ts-check
// The served page as you type. Results, passages and reports are rendered by the server and put in place here; without
// this script the page is a plain form. Nothing is loaded from elsewhere, and texts never become markup here.

const KEY = "m3-key"; // in sessionStorage: forgotten with the tab
const TYPING = 150; // ms without a key press before a search
const RESTING = 400; // ms without a change before words are compared by the model
const POLLING = 300; // ms between two looks at the progress of learning
const SHOWN = 10; // results; the others wait for the sliders or "Show more"
const WORK_PER_QUESTION = 2.5; // of learning, in searches

/** @template {Element} T @param {string} selector @returns {T} */
const one = (selector) => /** @type {T} */ (/** @type {unknown} */ (document.querySelector(selector)));
/** @param {string} selector @param {ParentNode} [within] @returns {HTMLElement[]} */
const all = (selector, within = document) => [...within.querySelectorAll(selector)].map((each) => /** @type {HTMLElement} */ (each));

/** Judgements of this tab, by question and passage. @type {Map<string, boolean>} */
const judgements = new Map();
/** Ranks before learning or its undoing, by passage. @type {Map<string, number>} */
let ranksBefore = new Map();
/** @type {AbortController | undefined} */
let searching;
/** @type {AbortController | undefined} */
let opening;
/** @type {number | undefined} */
let waiting;
let shown = SHOWN;
let milliseconds = 50; // of the last search

/** Send a request with the key; an answer that is no success becomes an Error with its message.
 * @param {string} path @param {RequestInit} [options] */
async function request(path, options = {}) {
  const key = sessionStorage.getItem(KEY);
  const headers = { ...(key ? { Authorization: `Bearer ${key}` } : {}), ...options.headers };
  let answer;
  try {
    answer = await fetch(path, { ...options, headers });
  } catch (error) {
    if (/** @type {Error} */ (error).name === "AbortError") throw error;
    throw new Error("the server does not answer; is it running?");
  }
  if (answer.ok) return answer;
  const stated = await answer.json().catch(() => ({}));
  throw Object.assign(new Error(stated.error || answer.statusText), { status: answer.status });
}

/** @param {string} path @param {object} [body] */
async function post(path, body = {}) {
  const text = JSON.stringify({ ...body, ...chosenIndex() });
  return (await request(path, { method: "POST", headers: { "Content-Type": "application/json" }, body: text })).json();
}

/** @param {string} path @param {RequestInit} [options] */
async function fetchDocument(path, options) {
  const text = await (await request(path, options)).text();
  const unstyled = text.replace(/<style>[^]*?<\/style>/, ""); // of a report, which looks like this page
  return new DOMParser().parseFromString(unstyled, "text/html");
}

/** The index as a field of bodies and query strings, if there are several. @returns {{index?: string}} */
function chosenIndex() {
  const select = /** @type {HTMLSelectElement | null} */ (document.querySelector("select[name=index]"));
  return select ? { index: select.value } : {};
}

/** The state of the form, without empty fields and sliders at their usual place. */
function parameters() {
  const form = /** @type {HTMLFormElement} */ (one("#search"));
  const stated = new URLSearchParams();
  for (const [name, value] of new FormData(form)) {
    const slider = sliders().find((each) => each.name === name);
    if (value !== "" && slider?.dataset.default !== value) stated.set(name, String(value));
  }
  return stated;
}

const sliders = () => all(".slider input").map((each) => /** @type {HTMLInputElement} */ (each));
const question = () => /** @type {HTMLInputElement} */ (one("#q")).value.trim();

/** Search, and show the results; the words of the first ones are compared when the typing rests.
 * @param {boolean} isExplained */
async function search(isExplained) {
  clearTimeout(waiting);
  searching?.abort();
  const { signal } = (searching = new AbortController());
  const stated = parameters();
  history.replaceState(null, "", stated.size ? `/?${stated}` : "/");
  const found = one("#found");
  const slow = setTimeout(() => (one("#status").textContent = "Searching…"), 200);
  one("#results").setAttribute("aria-busy", "true");
  found.classList.add("busy");
  try {
    const path = `/page/results?${stated}${isExplained ? "&explained=1" : ""}`;
    const next = /** @type {HTMLElement} */ ((await fetchDocument(path, { signal })).querySelector("#found"));
    clearTimeout(slow);
    replaceResults(next, isExplained);
    if (!isExplained && question()) waiting = setTimeout(() => search(true), RESTING);
    if (isExplained || !question()) await open(null);
  } catch (error) {
    clearTimeout(slow);
    if (signal.aborted) return;
    one("#found").classList.remove("busy");
    const again = document.createElement("button");
    again.type = "button";
    again.textContent = "Try again";
    again.addEventListener("click", () => search(isExplained));
    one("#status").replaceChildren(`The search failed: ${/** @type {Error} */ (error).message} `, again);
  } finally {
    if (!signal.aborted) one("#results").removeAttribute("aria-busy");
  }
}

/** @param {HTMLElement} next @param {boolean} isExplained */
function replaceResults(next, isExplained) {
  const focused = /** @type {HTMLElement | null} */ (document.activeElement?.closest("#found li"))?.dataset.id;
  const count = Number(next.dataset.count);
  if (!isExplained) milliseconds = Number(next.dataset.milliseconds);
  one("#found").replaceWith(document.adoptNode(next));
  rank();
  const link = all("#found li").find((each) => each.dataset.id === focused)?.querySelector("a");
  link?.focus({ preventScroll: true });
  one("#status").textContent = !question() ? "" : count ? `${count} best results in ${milliseconds} ms` : "No results";
}

/** Order the results by the sliders, without a request: each has its score by mode at the usual weights. */
function rank() {
  const weights = sliders().map((slider) => ({ mode: slider.name, weight: Number(slider.value) / 100, name: labelOf(slider) }));
  const scored = all("#found li[data-id]").map((item) => {
    const parts = weights.map(({ mode, weight, name }) => ({ mode, name, part: Number(item.dataset[mode] ?? 0) * weight }));
    return { item, parts, score: parts.reduce((sum, { part }) => sum + part, 0) };
  });
  scored.sort((a, b) => b.score - a.score || (/** @type {string} */ (a.item.dataset.id) < /** @type {string} */ (b.item.dataset.id) ? -1 : 1));
  const isUnweighted = weights.every(({ weight }) => weight === 0);
  if (isUnweighted && scored.length) one("#status").textContent = "Every slider is at 0; move one up.";
  scored.forEach(({ item, parts, score }, place) => {
    item.hidden = place >= shown;
    drawBar(item, parts, score, scored[0].score || 1);
    showMove(item, place + 1);
  });
  const list = document.querySelector("#found ol");
  if (list && !isUnweighted) list.append(...scored.map(({ item }) => item));
  const more = all("#more")[0];
  if (more) more.hidden = shown > SHOWN;
  one("#reset").toggleAttribute("hidden", sliders().every((slider) => slider.value === slider.dataset.default));
  showJudgements();
}

/** @param {HTMLInputElement} slider */
const labelOf = (slider) => slider.labels?.[0].querySelector(".key")?.textContent?.trim() ?? slider.name;

/** @param {HTMLElement} item @param {{mode: string, name: string, part: number}[]} parts @param {number} score @param {number} best */
function drawBar(item, parts, score, best) {
  const bar = item.querySelector("svg.bar");
  if (!bar) return;
  const lines = [];
  let at = 0;
  for (const { mode, part } of parts) {
    const width = (100 * Math.max(part, 0)) / best;
    const line = document.createElementNS("http://www.w3.org/2000/svg", "line");
    const places = { class: mode, x1: `${at}%`, x2: `${at + width}%`, y1: "3", y2: "3" };
    for (const [name, value] of Object.entries(places)) line.setAttribute(name, value);
    lines.push(line);
    at += width;
  }
  const shares = parts.map(({ name, part }) => `${name} ${Math.round((100 * Math.max(part, 0)) / (score || 1))} %`);
  const words = `score ${score.toFixed(2)}: ${shares.join(", ")}`;
  const title = document.createElementNS("http://www.w3.org/2000/svg", "title");
  title.textContent = words;
  bar.setAttribute("aria-label", words);
  bar.replaceChildren(title, ...lines);
}

/** Show how a rank changed by learning. @param {HTMLElement} item @param {number} now */
function showMove(item, now) {
  const mark = /** @type {HTMLElement} */ (item.querySelector(".moved"));
  const before = ranksBefore.get(item.dataset.id ?? "");
  const by = before === undefined ? 0 : before - now;
  mark.textContent = !ranksBefore.size ? "" : before === undefined ? "new" : by > 0 ? `▲${by}` : by < 0 ? `▼${-by}` : "";
  mark.title = by ? `rank ${before} before, ${now} now` : "";
  mark.className = `moved ${by < 0 ? "fell" : "rose"}`;
}

/** Show a passage in full. @param {string | null} id the passage; null for the first result @param {boolean} [hasFocus] */
async function open(id, hasFocus = false) {
  opening?.abort();
  const { signal } = (opening = new AbortController());
  const first = all("#found li[data-id]:not([hidden])")[0]?.dataset.id;
  const chosen = id ?? first;
  const panel = one("#passage");
  if (!chosen) return panel.replaceChildren();
  const stated = parameters();
  stated.set("id", chosen);
  try {
    const next = (await fetchDocument(`/page/passage?${stated}`, { signal })).querySelector("#passage");
    one("#passage").replaceWith(document.adoptNode(/** @type {Element} */ (next)));
  } catch (error) {
    if (signal.aborted) return;
    one("#passage").textContent = `The passage cannot be shown: ${/** @type {Error} */ (error).message}`;
  }
  for (const item of all("#found li[data-id]")) {
    item.classList.toggle("selected", item.dataset.id === chosen);
    item.querySelector("a")?.toggleAttribute("aria-current", item.dataset.id === chosen);
  }
  showJudgements();
  const title = /** @type {HTMLElement | null} */ (document.querySelector("#passage-title"));
  if (hasFocus) title?.focus();
}

/** @param {string | undefined} id */
const judgementKey = (id) => JSON.stringify([question(), id, chosenIndex().index]);

function showJudgements() {
  for (const thumb of all(".thumb")) {
    const known = judgements.get(judgementKey(thumb.dataset.id));
    thumb.setAttribute("aria-pressed", String(known !== undefined && String(known) === thumb.dataset.useful));
  }
}

/** @param {HTMLElement} thumb */
async function judge(thumb) {
  const useful = thumb.dataset.useful === "true";
  try {
    showCounts(await post("/feedback", { query: question(), id: thumb.dataset.id, useful }));
    judgements.set(judgementKey(thumb.dataset.id), useful);
    showJudgements();
  } catch (error) {
    one("#judged").textContent = `The judgement was not stored: ${/** @type {Error} */ (error).message}`;
  }
}

/** @typedef {{judged: number, useful: number, not_useful: number, questions: number}} Counts */
/** @param {Counts} counts @param {string} [note] */
function showCounts(counts, note = "") {
  const { judged, useful, not_useful, questions } = counts;
  const some = `Questions judged so far: ${questions} (${useful} results useful, ${not_useful} not)`;
  one("#judged").textContent = note + (judged ? some : "Mark results as useful or not, and the index learns from it.");
  const seconds = Math.max(1, Math.round((WORK_PER_QUESTION * questions * Math.max(milliseconds, 20)) / 1000));
  one("#estimate").textContent = judged ? `takes about ${duration(seconds)}` : "";
  /** @type {HTMLButtonElement} */ (one("#learn")).disabled = !judged;
}

/** @param {number} seconds */
const duration = (seconds) => (seconds < 90 ? `${Math.ceil(seconds)} s` : `${Math.ceil(seconds / 60)} min`);
const indexQuery = () => new URLSearchParams(chosenIndex()).toString();

/** @param {string} [note] */
async function refreshCounts(note) {
  showCounts(await (await request(`/feedback?${indexQuery()}`)).json(), note);
}

function rememberRanks() {
  ranksBefore = new Map(all("#found li[data-id]").map((item, place) => [item.dataset.id ?? "", place + 1]));
}

async function learn() {
  const button = /** @type {HTMLButtonElement} */ (one("#learn"));
  rememberRanks();
  button.disabled = true;
  try {
    await watch(await post("/learn"));
  } catch (error) {
    showReport("Learning failed", [`${/** @type {Error} */ (error).message}`]);
  } finally {
    button.disabled = false;
  }
}

/** @typedef {{state: string, progress: number, seconds_left: number | null, message: string, html: boolean,
 *   report: null | {headline: string, moved: Record<string, number>, warnings: string[]}}} Learning */
/** Wait until learning is done, then show what changed. @param {Learning} status */
async function watch(status) {
  const progress = /** @type {HTMLProgressElement} */ (one("#progress"));
  progress.hidden = false;
  one("#judged").textContent = "Learning from the judged questions…";
  while (status.state === "running") {
    progress.value = status.progress;
    one("#estimate").textContent = status.seconds_left === null ? "" : `about ${duration(status.seconds_left)} left`;
    await new Promise((resolve) => setTimeout(resolve, POLLING));
    status = await (await request(`/learn?${indexQuery()}`)).json();
  }
  progress.hidden = true;
  await refreshCounts();
  const hasMoved = Object.keys(status.report?.moved ?? {}).length > 0;
  one("#undo").toggleAttribute("hidden", !hasMoved);
  const parts = status.html ? await fetchDocument(`/learn/report?${indexQuery()}`) : null;
  const title = status.state === "failed" ? "Learning failed" : hasMoved ? status.report?.headline : "Not enough evidence yet, nothing moved";
  showReport(title ?? "", [status.message], hasMoved ? parts : null);
  if (question()) await search(true);
}

/** @param {string} title @param {string[]} sentences @param {Document | null} [page] the report as a page */
function showReport(title, sentences, page = null) {
  const report = /** @type {HTMLElement} */ (one("#report"));
  const head = document.createElement("div");
  head.className = "headline";
  const heading = document.createElement("h2");
  heading.textContent = title;
  const close = document.createElement("button");
  close.type = "button";
  close.id = "close";
  close.textContent = "Close";
  close.addEventListener("click", closeReport);
  head.append(heading, close);
  const texts = sentences.map((sentence) => {
    const paragraph = document.createElement("p");
    paragraph.textContent = sentence.replace("Not enough evidence yet, nothing moved: ", "");
    return paragraph;
  });
  const body = document.createElement("div");
  body.append(...[...(page?.querySelector("main")?.childNodes ?? [])].map((node) => document.adoptNode(node)));
  report.replaceChildren(head, ...texts, body);
  report.hidden = false;
  report.focus();
}

function closeReport() {
  /** @type {HTMLElement} */ (one("#report")).hidden = true;
  /** @type {HTMLElement} */ (one("#learn")).focus();
}

async function undo() {
  rememberRanks();
  try {
    const { message } = await post("/undo");
    one("#undo").toggleAttribute("hidden", true);
    /** @type {HTMLElement} */ (one("#report")).hidden = true;
    await refreshCounts(`${message} `);
    if (question()) await search(true);
  } catch (error) {
    one("#judged").textContent = `Nothing was undone: ${/** @type {Error} */ (error).message}`;
  }
}

/** @param {Event} event */
function clicked(event) {
  const target = /** @type {HTMLElement} */ (event.target);
  const mouse = /** @type {MouseEvent} */ (event);
  const link = /** @type {HTMLAnchorElement | null} */ (target.closest("a.title, a.neighbor"));
  if (link && !mouse.ctrlKey && !mouse.metaKey && !mouse.shiftKey) {
    event.preventDefault();
    const id = link.dataset.id ?? /** @type {HTMLElement | null} */ (link.closest("li"))?.dataset.id;
    open(id ?? null, true);
  }
  const thumb = /** @type {HTMLElement | null} */ (target.closest(".thumb"));
  if (thumb) judge(thumb);
  if (target.id === "more") [shown] = [Infinity], rank();
  if (target.id === "learn") learn();
  if (target.id === "undo") undo();
  if (target.id === "reset") {
    for (const slider of sliders()) slider.value = slider.dataset.default ?? "100";
    slid();
  }
}

/** The sliders moved: order what is there at once, then ask for the best results by these weights. */
function slid() {
  for (const slider of sliders()) all("output", slider.parentElement ?? document)[0].textContent = `${slider.value} %`;
  ranksBefore = new Map();
  rank();
  clearTimeout(waiting);
  if (question()) waiting = setTimeout(() => search(true), RESTING);
}

/** @param {Event} event */
function changed(event) {
  const control = /** @type {HTMLInputElement} */ (event.target);
  if (control.form?.id !== "search") return;
  if (control.type === "range") return slid();
  [shown, ranksBefore] = [SHOWN, new Map()];
  clearTimeout(waiting);
  searching?.abort();
  if (control.name === "index") return location.assign(`/?${parameters()}`);
  waiting = setTimeout(() => search(false), TYPING);
}

/** @param {KeyboardEvent} event */
function pressed(event) {
  const isTyping = event.target instanceof Element && event.target.matches("input:not([type=range]), select, textarea");
  if (event.key === "/" && !isTyping && !event.ctrlKey && !event.metaKey && !event.altKey) {
    event.preventDefault();
    /** @type {HTMLInputElement | null} */ (document.querySelector("#q"))?.select();
    /** @type {HTMLInputElement | null} */ (document.querySelector("#q"))?.focus();
  }
  if (event.key === "Escape" && document.activeElement?.closest("#report")) closeReport();
}

/** Open the page with the key of this tab. @param {boolean} isNew whether the key was just entered */
async function unlock(isNew) {
  try {
    const page = await fetchDocument(`/page${location.search}`);
    document.title = page.title;
    document.body.replaceWith(document.adoptNode(page.body));
    start();
  } catch (error) {
    const isWrong = /** @type {{status?: number}} */ (error).status === 401;
    if (isWrong) sessionStorage.removeItem(KEY);
    if (isNew || !isWrong) one("#status").textContent = isWrong ? "This is not the key." : /** @type {Error} */ (error).message;
  }
}

function start() {
  const keyForm = /** @type {HTMLFormElement | null} */ (document.querySelector("#key"));
  if (keyForm) {
    keyForm.addEventListener("submit", (event) => {
      event.preventDefault();
      sessionStorage.setItem(KEY, /** @type {HTMLInputElement} */ (one("#secret")).value);
      unlock(true);
    });
    if (sessionStorage.getItem(KEY)) unlock(false);
    return;
  }
  const form = document.querySelector("#search");
  if (!form) return;
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    search(true);
  });
  /** @type {HTMLDetailsElement} */ (one("#controls")).open = matchMedia("(min-width: 40.01rem)").matches;
  document.body.addEventListener("click", clicked);
  document.body.addEventListener("input", changed);
  rank();
  all("#found li[data-id]")[0]?.classList.add("selected");
  refreshCounts().catch((error) => (one("#judged").textContent = error.message));
}

document.documentElement.classList.add("js");
document.addEventListener("keydown", pressed);
start();
