/* The heading over a step's trajectories, and what the update did to their tokens. */

import { partsOf } from "../view/js/dom.js";
import { curveLayout } from "./curves.js";
import { drawPlot, loadPlotly, plotColours } from "./plotly.js";

const root = element.querySelector(".step-view");
const find = partsOf(root);
let shown = null;

function showValue() {
  root.hidden = !props.value;
  if (root.hidden) return;
  shown = JSON.parse(props.value);
  find("h3").textContent = shown.title;
  find(".words").textContent = shown.words;
  const at = shown.steps.indexOf(shown.step);
  offer(".earlier", at > 0 ? shown.steps[at - 1] : undefined);
  offer(".later", at < 0 ? undefined : shown.steps[at + 1]);
  find(".pushes").hidden = !shown.points.length;
  if (shown.points.length) drawPushes();
}

function offer(selector, step) {
  const button = find(selector);
  button.hidden = step === undefined;
  button.dataset.step = step;
  button.querySelector("span").textContent = `step ${step}`;
}

/** plotly reads some markup; model text is no markup. */
const plain = (text) => text.replaceAll("&", "&amp;").replaceAll("<", "&lt;");

async function drawPushes() {
  const mine = shown;
  const loaded = await loadPlotly(props.plotly);
  if (!loaded) find(".pushes").hidden = true;
  if (!loaded || shown !== mine) return;
  const colours = plotColours(root);
  const palette = ["student", "heldout", "third", "fourth"].map((name) => colours[name]);
  const traces = shown.points.map(({ sample, advantage, change, labels }, i) => ({
    type: "scatter",
    mode: "markers",
    name: `rollout ${sample + 1}`,
    x: advantage,
    y: change,
    text: labels.map(plain),
    steps: labels.map(() => sample),
    marker: { size: 5, opacity: 0.7, color: palette[i % palette.length] },
    hovertemplate: "%{text}<br>given %{x:.3~f}, changed by %{y:.3~f}<extra></extra>",
  }));
  const layout = curveLayout(root, colours, {}, { title: "advantage given" });
  Object.assign(layout, { hovermode: "closest", hoverdistance: 20 });
  for (const axis of [layout.xaxis, layout.yaxis]) Object.assign(axis, { rangemode: "normal" });
  drawPlot(find(".push-plot"), traces, layout, {
    plotly_click: ({ points: [{ data, pointNumber }] }) =>
      trigger("sample", { run: shown.run, step: shown.step, sample: data.steps[pointNumber] }),
  });
}

for (const selector of [".earlier", ".later"]) {
  find(selector).addEventListener("click", (event) => {
    const step = Number(event.currentTarget.dataset.step);
    trigger("step", { run: shown.run, kind: shown.kind, step });
  });
}
watch("value", () => {
  showValue();
  if (props.value) root.scrollIntoView({ behavior: "smooth", block: "nearest" }); // it lies below the curves
});
showValue();
