/*
 * A run, watched live. `element`, `props`, `trigger`, `server` and `watch` are given to this script by Gradio.
 *
 * The plots are drawn once and extended in place with the rows that arrive, so a zoom is kept and no history
 * is sent twice. Nothing is asked of the server once the run has ended, nor while the page is out of sight.
 */

const POLL_MS = 1000;
const WINDOW = 10; // steps of the moving average
const LIVE = ["running", "stopping"];

const root = element.querySelector(".run-view");
const find = (selector) => root.querySelector(selector);
let followed = null; // { name, rows }; replaced when another run is followed

// ------------------------------------------------------------------------------------------------ curves

/** Resolve the view's CSS colours, which differ by day and by night. */
function readColours() {
  const probe = document.createElement("span");
  probe.hidden = true;
  root.append(probe);
  const entries = ["ink", "muted", "line", "student", "student-thin", "student-soft", "teacher"].map((name) => {
    probe.style.color = `var(--${name})`;
    return [name, getComputedStyle(probe).color];
  });
  probe.remove();
  return Object.fromEntries(entries);
}

function layout(curve, colours, steps) {
  const axis = { gridcolor: colours.line, zerolinecolor: colours.line, linecolor: colours.line, automargin: true };
  return {
    margin: { l: 8, r: 8, t: 8, b: 8 },
    paper_bgcolor: "transparent",
    plot_bgcolor: "transparent",
    font: { family: getComputedStyle(root).fontFamily, size: 12, color: colours.muted },
    showlegend: false,
    hovermode: "x unified",
    hoverlabel: { bgcolor: getComputedStyle(find("figure")).backgroundColor, font: { color: colours.ink } },
    xaxis: { ...axis, title: { text: "step", standoff: 4 }, range: [0, steps * 1.01] },
    yaxis: curve === "accuracy" ? { ...axis, tickformat: ".0%", range: [0, 1.02] } : { ...axis, rangemode: "tozero" },
  };
}

/** Every trace with the function that takes its point from the rows; [] where a row has none. */
function traces(curve, colours) {
  const line = (color, width, dash = "solid") => ({ color, width, dash });
  const base = { type: "scatter", mode: "lines", x: [], y: [] };
  if (curve === "accuracy") {
    const quiet = { line: line("transparent", 0), hoverinfo: "skip" };
    return [
      { ...base, ...quiet, key: "heldout_accuracy_low" },
      { ...base, ...quiet, key: "heldout_accuracy_high", fill: "tonexty", fillcolor: colours["student-soft"] },
      { ...base, name: "teacher", line: line(colours.teacher, 2, "dash"), key: "teacher_accuracy" },
      {
        ...base,
        ...{ name: "student", mode: "lines+markers", line: line(colours.student, 2.5), marker: { size: 7 } },
        cliponaxis: false,
        key: "heldout_accuracy",
      },
    ];
  }
  return [
    { ...base, name: "step", line: line(colours["student-thin"], 1.5), key: curve },
    { ...base, name: "mean", line: line(colours.student, 2.5), key: curve, averaged: true },
  ];
}

function movingAverage(rows, key, step) {
  const last = rows.filter((row) => row[key] !== undefined && row.step <= step).slice(-WINDOW);
  return last.reduce((sum, row) => sum + row[key], 0) / last.length;
}

const plots = () => [...root.querySelectorAll(".curve")];

function drawEmptyCurves(steps) {
  const colours = readColours();
  for (const plot of plots()) {
    const { curve } = plot.dataset;
    plot.traces = traces(curve, colours);
    const drawn = plot.traces.map(({ key, averaged, ...trace }) => trace);
    Plotly.newPlot(plot, drawn, layout(curve, colours, steps), { displayModeBar: false, responsive: true });
  }
}

function extendCurves(rows, fresh) {
  for (const plot of plots()) {
    const points = plot.traces.map(({ key, averaged }) => {
      const there = fresh.filter((row) => row[key] !== undefined);
      const height = (row) => (averaged ? movingAverage(rows, key, row.step) : row[key]);
      return { x: there.map((row) => row.step), y: there.map(height) };
    });
    if (!points.some(({ x }) => x.length)) continue;
    const update = { x: points.map(({ x }) => x), y: points.map(({ y }) => y) };
    Plotly.extendTraces(plot, update, points.map((_, trace) => trace));
  }
}

function recolour() {
  if (!followed) return;
  const colours = readColours();
  for (const plot of plots()) {
    const { curve } = plot.dataset;
    const restyled = traces(curve, colours);
    restyled.forEach(({ line, fillcolor }, trace) => {
      Plotly.restyle(plot, { line: [line], ...(fillcolor && { fillcolor }) }, [trace]);
    });
    const { font, hoverlabel } = layout(curve, colours);
    const lines = ["gridcolor", "zerolinecolor", "linecolor"].flatMap((part) => [`xaxis.${part}`, `yaxis.${part}`]);
    Plotly.relayout(plot, { font, hoverlabel, ...Object.fromEntries(lines.map((path) => [path, colours.line])) });
  }
}

// ------------------------------------------------------------------------------------------------ standing

/** What a step took: all its phases, the evaluation included. */
function seconds(row) {
  return Object.entries(row).reduce((sum, [key, value]) => (key.startsWith("seconds_") ? sum + value : sum), 0);
}

function duration(total) {
  const rounded = Math.round(total);
  return rounded < 60 ? `${rounded} s` : `${Math.floor(rounded / 60)} min ${String(rounded % 60).padStart(2, "0")} s`;
}

function showStanding({ state, step, steps, message, notes }) {
  const { name, rows } = followed;
  root.removeAttribute("data-empty");
  find(".pill").textContent = state;
  find(".pill").dataset.state = state;
  find(".run-name").textContent = name;
  find("progress").max = steps;
  find("progress").value = step;
  const trained = rows.filter((row) => row.step > 0);
  const spent = trained.reduce((sum, row) => sum + seconds(row), 0);
  const left = LIVE.includes(state) && trained.length ? ((steps - step) * spent) / trained.length : null;
  find(".progress-text").textContent = rows.length || !LIVE.includes(state)
    ? `step ${step} of ${steps}` + (left === null ? "" : `, about ${duration(left)} left`)
    : "measuring where the student starts …";
  find(".message").textContent = message;
  find(".message").hidden = !message;
  find(".notes").hidden = !notes.length;
  find(".notes").replaceChildren(
    ...notes.map((note) => Object.assign(document.createElement("li"), { textContent: note })),
  );
  find(".pace").textContent = trained.length ? paceSentence(trained.at(-1)) : "";
}

function paceSentence(row) {
  const speed = Math.round(row.tokens_per_second).toLocaleString("en");
  const [sample, teacher, update] = ["sample", "teacher", "update"].map((phase) => row[`seconds_${phase}`].toFixed(1));
  return (
    `${speed} tokens per second; the last step took ${sample} s to sample, ` +
    `${teacher} s for the teacher, ${update} s to update.`
  );
}

// ------------------------------------------------------------------------------------------------ following

const inSight = () => !document.hidden && root.offsetParent !== null;
const pause = () => new Promise((resolve) => setTimeout(resolve, POLL_MS));

async function follow(name) {
  const mine = { name, rows: [] };
  followed = mine;
  let drawn = false;
  while (followed === mine && root.isConnected) {
    if (inSight()) {
      const news = await server.news(name, mine.rows.at(-1)?.step ?? -1);
      if (followed !== mine) return;
      if (news) {
        mine.rows.push(...news.rows);
        showStanding(news);
        if (!drawn) drawEmptyCurves(news.steps);
        drawn = true;
        extendCurves(mine.rows, news.rows);
        if (!LIVE.includes(news.state)) {
          trigger("ended");
          return;
        }
      } else {
        find(".pace").textContent = "The app does not answer; trying again.";
      }
    }
    await pause();
  }
}

function showValue() {
  const name = props.value && JSON.parse(props.value).run;
  if (name && name !== followed?.name) follow(name);
}

for (const span of root.querySelectorAll(".window")) span.textContent = `${WINDOW} steps`;
new MutationObserver(recolour).observe(document.body, { attributes: true, attributeFilter: ["class"] });
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", recolour);
watch("value", showValue);
showValue();
