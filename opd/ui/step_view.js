/*
 * The heading over a step's trajectories. `element`, `props`, `trigger` and `watch` are given to this script by
 * Gradio; curves.js stands before it.
 */
const root = element.querySelector(".step-view");
const find = (selector) => root.querySelector(selector);
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
  try {
    await loadPlotly(props.plotly);
  } catch {
    find(".pushes").hidden = true;
    return;
  }
  if (shown !== mine) return;
  const colours = colourReader(root);
  const palette = ["student", "heldout", "third", "fourth"].map(colours.of);
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
  layout.xaxis.rangemode = layout.yaxis.rangemode = "normal";
  const plot = find(".push-plot");
  const isNew = !plot.data;
  Plotly.react(plot, traces, layout, { displayModeBar: false, responsive: true });
  colours.done();
  if (isNew) {
    plot.on("plotly_click", ({ points: [{ data, pointNumber }] }) => {
      trigger("sample", { run: shown.run, step: shown.step, sample: data.steps[pointNumber] });
    });
  }
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
