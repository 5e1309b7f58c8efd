/* A run, watched live. Only what the page does not know yet is sent. */

import { copyText, make, makeButton, partsOf, setQuery } from "../view/js/dom.js";
import { Board, Rows, curvesOfRun, trainingSeconds } from "./curves.js";
import { IDLE_MS, Poll } from "./poll.js";

const OFFERS = {
  queued: ["stop"],
  running: ["pause", "stop", "keep_best"],
  pausing: ["go_on", "stop", "keep_best"],
  paused: ["go_on", "stop", "keep_best"],
  stopping: [],
};
const POLL_MS = 1000;
const BAD = ["failed", "interrupted"];

const root = element.querySelector(".run-view");
const find = partsOf(root);
const say = (words) => (find(".said").textContent = words);
let followed = null; // { name, rows, bounds, cursor, alarms, news }; replaced when another run is followed

const smoothing = () => Number(find(".smooth").value);
const boards = [".main", ".more"].map(
  (place) =>
    new Board(root, find(place), props.panels.filter(({ more = false }) => more === (place === ".more")), {
      plotly: props.plotly,
      measured: ({ traces }) => traces.some(({ key }) => followed.rows.has(key)),
      curvesOf: (panel, colours) => curvesOfRun(panel, colours, followed.rows, smoothing()),
      marksOf: ({ traces }) =>
        followed.alarms.filter(({ metric }) => traces.some(({ key }) => key === metric)).map(({ step }) => step),
      boundsOf: ({ traces }) =>
        traces.filter(({ look }) => look !== "raw").map(({ key, label }) => [label, followed.bounds[key]]),
      axis: () => ({ range: [-0.5, followed.news.steps + 0.5] }),
      onPoint: (step) => trigger("point", { run: followed.name, step }),
    }),
);
const drawCurves = () => boards.forEach((board) => board.update(followed?.name));
find(".smooth").addEventListener("change", drawCurves);

/** What a step took: all its phases, the evaluation included. */
function seconds(row) {
  return trainingSeconds(row) + (row.seconds_evaluate ?? 0);
}

function duration(total) {
  const rounded = Math.round(total);
  if (rounded < 60) return `${rounded} s`;
  const [hours, minutes] = [Math.floor(rounded / 3600), Math.floor((rounded % 3600) / 60)];
  return hours ? `${hours} h ${minutes} min` : `${minutes} min ${String(rounded % 60).padStart(2, "0")} s`;
}

function showStanding() {
  const { name, rows, news } = followed;
  const { state, step, steps, message, phase, live, alarmed } = news;
  root.removeAttribute("data-empty");
  root.removeAttribute("data-gone");
  find(".state").textContent = alarmed ? `${state}, with an alarm` : state;
  find(".state").dataset.state = state;
  find(".state").toggleAttribute("data-alarmed", alarmed);
  find(".run-name").textContent = name;
  find("progress").max = steps;
  find("progress").value = step;
  const trained = rows.all.filter((row) => row.step > 0);
  find(".progress-text").textContent = progressSentence(news, trained);
  find(".phase").textContent = phase && `${phase} …`;
  find(".phase").hidden = !live;
  find(".message").textContent = message;
  find(".message").classList.toggle("bad", alarmed || BAD.includes(state));
  find(".message").hidden = !message;
  const offered = OFFERS[state] ?? (news.resumable ? ["resume"] : []);
  for (const button of root.querySelectorAll("[data-request]")) {
    button.hidden = !offered.includes(button.dataset.request);
    if (button.dataset.request === "stop") button.textContent = state === "queued" ? "Cancel" : "Stop";
  }
  find(".hint").hidden = find("details").hidden = !rows.all.length;
  find(".prolong").hidden = state !== "finished";
  find(".prolong input").value ||= steps;
  find(".again").textContent = BAD.includes(state) ? "Edit these settings" : "Use its settings again";
  find(".review").hidden = live || !news.trained;
  const timed = trained.findLast((row) => row.tokens_per_second !== undefined);
  find(".pace").textContent = timed ? paceSentence(timed) : "";
}

function progressSentence({ state, step, steps, live }, trained) {
  if (state === "queued") return "";
  if (live && !followed.rows.all.length) return "getting ready …";
  const at = `step ${step} of ${steps}`;
  if (!live || !trained.length || state === "paused") return at;
  const spent = trained.reduce((sum, row) => sum + seconds(row), 0);
  return `${at}, about ${duration(((steps - step) * spent) / trained.length)} left`;
}

function paceSentence(row) {
  const speed = Math.round(row.tokens_per_second).toLocaleString("en");
  const [sample, teacher, update] = ["sample", "teacher", "update"].map((phase) => (row[`seconds_${phase}`] ?? 0).toFixed(1));
  const memory = row.memory_peak_bytes ? ` ${(row.memory_peak_bytes / 2 ** 30).toFixed(1)} GiB at the peak.` : "";
  return (
    `${speed} tokens per second; the last step took ${sample} s to sample, ` +
    `${teacher} s for the teacher, ${update} s to update.${memory}`
  );
}

/** Add what happened to what is listed. */
function report(happened) {
  const { alarm: alarms = [], other: others = [] } = Object.groupBy(happened, ({ kind }) => (kind === "alarm" ? kind : "other"));
  followed.alarms.push(...alarms);
  find(".alarms").append(...alarms.map(alarmLine));
  find(".alarms").hidden = !followed.alarms.length;
  find(".happened").append(...others.map(({ text }) => make("li", "", text)));
  find(".happened").hidden = !find(".happened").childElementCount;
}

function alarmLine({ text, step, evidence }) {
  const { name } = followed;
  const button = makeButton("pill", "Show it", () => trigger("evidence", { run: name, step, evidence }));
  return make("li", "", make("span", "", `⚠ ${text}`), button);
}

function forget() {
  Object.assign(followed, { rows: new Rows(), bounds: {}, alarms: [] });
  for (const list of [".alarms", ".happened"]) find(list).replaceChildren();
}

/** Ask for what is new of the run that is followed; returns when to ask again. */
async function askForNews() {
  const mine = followed;
  const news = await server.news(mine.name, mine.cursor); // undefined where it fails
  if (followed !== mine) return POLL_MS;
  if (!news) {
    say("The app does not answer; trying again.");
    return POLL_MS;
  }
  if (news.gone) {
    showGone();
    return 0;
  }
  const before = mine.news;
  if (news.restart) forget();
  mine.rows.add(news.rows);
  Object.assign(mine.bounds, news.bounds);
  Object.assign(mine, { cursor: news.cursor, news });
  report(news.happened);
  showStanding();
  if (!before || news.rows.length || news.restart) drawCurves();
  if (before?.state !== news.state) say("");
  if (!news.live && before?.live !== false) trigger("ended", { run: mine.name });
  return news.live ? POLL_MS : IDLE_MS;
}

const poll = new Poll(root, askForNews);

/** Its curves stay to be looked at; there is nothing to be asked of it any more. */
function showGone() {
  find(".state").textContent = find(".state").dataset.state = "gone";
  say("This run is gone.");
  root.setAttribute("data-gone", "");
  trigger("followed", { run: followed.name });
}

function follow(name) {
  find(".prolong input").value = ""; // as many again as the run had
  followed = { name, cursor: null, news: null };
  forget();
  say("");
  setQuery("run", name);
  trigger("followed", { run: name });
  poll.start();
}

for (const button of root.querySelectorAll("[data-request]")) {
  button.addEventListener("click", () => {
    say(button.dataset.request === "resume" ? "Resuming …" : "Asked.");
    trigger("control", { run: followed.name, request: button.dataset.request });
  });
}
find(".prolong").addEventListener("submit", (event) => {
  event.preventDefault();
  say("Going on …");
  trigger("control", { run: followed.name, request: "prolong", steps: find(".prolong input").valueAsNumber });
});
find(".review").addEventListener("click", () => trigger("review", { run: followed.name }));
find(".again").addEventListener("click", () => trigger("settings", { run: followed.name }));
find(".copy").addEventListener("click", async () => {
  const address = `${location.origin}${location.pathname}?run=${followed.name}`;
  say((await copyText(address)) ? "The link is copied." : address);
});

/** The value names the run, counts what was asked of it, and says what came of that: its news is wanted at once. */
function showValue() {
  const { run, said } = JSON.parse(props.value || "{}");
  if (!run) return;
  if (run !== followed?.name) return follow(run);
  if (said !== undefined) say(said);
  poll.start();
}

watch("value", showValue);
showValue();
