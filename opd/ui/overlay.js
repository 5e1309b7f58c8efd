/* Curves of several runs. */

import { make, makeKey, partsOf } from "../view/js/dom.js";
import { SortableTable } from "../view/js/table.js";
import { Board, Rows } from "./curves.js";
import { IDLE_MS, Poll } from "./poll.js";

const POLL_MS = 2000;
const PALETTE = ["student", "heldout", "teacher", "third", "fourth", "wrong"];
const AXES = { step: "step", tokens: "completion tokens", seconds: "seconds of training" };
const COMPARED = [
  { name: "accuracy", title: "Held-out accuracy", words: "on problems that never train", key: "heldout_accuracy", unit: ".0%", range: [0, 1.02] },
  { name: "heldout-kl", title: "Held-out KL", words: "nats a token", key: "heldout_kl" },
  { name: "kl", title: "Training KL", words: "nats a token, smoothed", key: "reverse_kl", smooth: true },
  { name: "length", title: "Length of completions", words: "tokens, smoothed", key: "completion_tokens", smooth: true },
].map((panel) => ({ ...panel, traces: [] }));

const root = element.querySelector(".overlay");
const find = partsOf(root);
// { value, runs: [{ name, rows, bounds, cursor, live }], idle: when all were asked last }; replaced when others are chosen
let shown = null;

const board = new Board(root, find(".curves"), COMPARED, {
  plotly: props.plotly,
  axis: () => ({ title: AXES[find(".axis").value] }),
  measured: ({ key }) => shown.runs.some(({ rows }) => rows.has(key)),
  boundsOf: ({ key }) => shown.runs.map(({ name, bounds }) => [name, bounds[key]]),
  curvesOf: (panel, colours) =>
    shown.runs.map(({ name, rows }, i) => {
      const window = panel.smooth ? Number(find(".smooth").value) : 1;
      const points = rows.points(panel.key, { window, axis: find(".axis").value });
      const line = { color: colours[colourOf(i)], width: 2.5, dash: name === shown.value.baseline ? "dash" : "solid" };
      const mode = panel.smooth && points.x.length > 1 ? "lines" : "lines+markers";
      return { type: "scatter", name, mode, line, cliponaxis: false, ...points, hovertemplate: `%{y:${panel.unit ?? ".4~g"}}` };
    }),
});
const colourOf = (i) => PALETTE[i % PALETTE.length];
const draw = () => shown && board.update(`${shown.runs.map(({ name }) => name)} ${find(".axis").value}`);

/** Ask for what is new; of runs that ended less often. Returns when to ask again. */
async function askForNews() {
  const mine = shown;
  let fresh = false;
  const all = Date.now() >= mine.idle + IDLE_MS;
  if (all) mine.idle = Date.now();
  for (const run of mine.runs.filter(({ live }) => live || all)) {
    const news = await server.news(run.name, run.cursor);
    if (shown !== mine) return POLL_MS;
    if (!news) continue;
    run.live = Boolean(news.live);
    if (news.gone) continue;
    if (news.restart) Object.assign(run, { rows: new Rows(), bounds: {} });
    run.rows.add(news.rows);
    Object.assign(run.bounds, news.bounds);
    run.cursor = news.cursor;
    fresh ||= news.rows.length > 0;
  }
  if (fresh) draw();
  return mine.runs.some(({ live }) => live) ? POLL_MS : IDLE_MS;
}

const poll = new Poll(element, askForNews);

function showValue() {
  const value = JSON.parse(props.value || "null");
  root.hidden = !value?.runs.length;
  if (root.hidden) return;
  const known = new Map(shown?.runs.map((run) => [run.name, run]));
  shown = {
    value,
    idle: Date.now(),
    runs: value.runs.map((name) => known.get(name) ?? { name, rows: new Rows(), bounds: {}, cursor: null, live: true }),
  };
  find(".names").replaceChildren(
    ...value.runs.map((name, i) => make("li", "", makeKey(colourOf(i), name), name === value.baseline ? " ★" : "")),
  );
  showDiff(value);
  draw();
  poll.start();
}

/** Where the settings of two runs differ. */
function showDiff({ runs, diff }) {
  find(".diff").hidden = runs.length !== 2;
  if (runs.length !== 2) return;
  const columns = ["setting", ...runs].map((head, i) => ({ name: `at-${i}`, head, words: true, rising: true, value: (row) => row[i], cell: (row) => row[i] }));
  const rows = Object.entries(diff).map(([name, values]) => [name, ...values]);
  find(".diff .table").replaceChildren();
  new SortableTable(find(".diff .table"), columns).show(rows.length ? rows : [["none", "", ""]]);
}

for (const selector of [".axis", ".smooth"]) find(selector).addEventListener("change", draw);
watch("value", showValue);
showValue();
