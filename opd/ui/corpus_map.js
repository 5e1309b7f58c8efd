/* The map of the overview: every token by student entropy and reverse KL, and its quadrants. */

import { delayed, make, makeButton, partsOf } from "../view/js/dom.js";
import { counted, shareWords } from "../view/js/words.js";
import { dragMode, drawPlot, loadPlotly, plotColours, plotLayout } from "./plotly.js";

const POINTING_MS = 120;
const FLOOR = 1e-3; // nats: the axes are logarithmic, and what is less stands at their beginning
const PRAISED = ["brilliant", "great"];

export class TokenMap {
  /**
   * `legend`: quadrants, their borders, verdicts, how many tokens are listed; `list(words, places)` lists tokens,
   * `unlist()` closes that list, `open(place)` shows one, `point(place)` says which one the pointer is on.
   */
  constructor(root, legend, { isOpen, list, unlist, open, point }) {
    this.root = root;
    this.legend = legend;
    this.calls = { isOpen, list, unlist, open };
    this.data = null;
    this.find = partsOf(root);
    this.plot = this.find(".plot");
    this.point = delayed((at) => point(at), POINTING_MS);
    this.buttons = legend.quadrants.map((name, quadrant) => makeButton("pill", name, () => this.pick(quadrant)));
    for (const button of this.buttons) button.append(make("span", "figure"));
    this.find(".quadrants").append(...this.buttons);
    this.press(null);
  }

  get isDrawn() {
    return Boolean(this.plot.data) && this.calls.isOpen();
  }

  /** Show what the server gave; false where plotly is not to be had. */
  async show(data) {
    this.data = data;
    const { index, found, counts, shares, quadrant } = data;
    this.find(".thinned").textContent =
      index.length < found ? `Shown are ${index.length.toLocaleString("en")} of ${found.toLocaleString("en")} tokens, evenly chosen.` : "";
    this.buttons.forEach((button, i) => {
      button.querySelector(".figure").textContent = ` ${counted(counts[i], "token")}, ${shareWords(shares[i])} of the KL`;
      button.disabled = !quadrant.includes(i);
    });
    const loaded = await loadPlotly(this.legend.plotly);
    if (loaded && this.data === data && this.calls.isOpen()) this.draw();
    return loaded;
  }

  draw() {
    const colours = plotColours(this.root);
    drawPlot(this.plot, [this.trace(colours)], this.layout(colours), {
      plotly_selected: (event) => {
        if (!event?.points?.length) return;
        this.press(null);
        this.listPoints(event.points.map(({ pointIndex }) => pointIndex), "Drawn round");
      },
      plotly_deselect: this.calls.unlist,
      plotly_click: ({ points: [{ pointIndex }] }) => {
        const [group, sample, index] = this.placeOf(pointIndex);
        this.calls.open({ group, sample, index });
      },
      plotly_hover: ({ points: [{ pointIndex }] }) => this.point(this.placeOf(pointIndex)),
    });
  }

  redraw() {
    if (this.isDrawn) this.draw();
  }

  trace(colours) {
    const { entropy, kl, verdict } = this.data;
    const { verdicts, minded } = this.legend;
    const kindOf = verdicts.map((name) => (minded.includes(name) ? "dislike" : PRAISED.includes(name) ? "like" : "muted"));
    const kinds = verdict.map((one) => kindOf[one]);
    return {
      type: make("canvas").getContext("webgl") ? "scattergl" : "scatter",
      mode: "markers",
      hoverinfo: "none",
      x: entropy.map((value) => Math.max(value, FLOOR)),
      y: kl.map((value) => Math.max(value, FLOOR)),
      marker: {
        size: kinds.map((kind) => (kind === "muted" ? 5 : 7)),
        symbol: kinds.map((kind) => (kind === "dislike" ? "diamond" : "circle")),
        color: kinds.map((kind) => colours[kind]),
        opacity: 0.65,
        line: { width: 0 },
      },
      // By colour: where many lie on each other, faint ones would add up.
      unselected: { marker: { color: colours.line, opacity: 0.65 } },
      selectedpoints: null,
    };
  }

  layout(colours) {
    const { borders, quadrants } = this.legend;
    const top = (values) => Math.log10(1.6 * values.reduce((most, value) => Math.max(most, value), 2));
    const axis = (title, values) => ({
      type: "log",
      title: { text: title, standoff: 6 },
      range: [Math.log10(FLOOR) - 0.3, top(values)],
      tickvals: [FLOOR, 0.01, 0.1, 1, 10],
      ticktext: ["≤ 0.001", "0.01", "0.1", "1", "10"],
      gridcolor: colours.line,
      zeroline: false,
      automargin: true,
    });
    const [sure, agreed] = borders;
    const line = { color: colours.muted, width: 1, dash: "dot" };
    const corners = [[0, 0], [0, 1], [1, 0], [1, 1]]; // of the quadrants
    return {
      ...plotLayout(this.root, colours),
      hovermode: "closest",
      dragmode: dragMode("lasso"),
      xaxis: axis("student entropy, nats", this.data.entropy),
      yaxis: axis("reverse KL, nats", this.data.kl),
      shapes: [
        { type: "line", x0: sure, x1: sure, y0: 0, y1: 1, yref: "paper", line },
        { type: "line", x0: 0, x1: 1, y0: agreed, y1: agreed, xref: "paper", line },
      ],
      selections: [],
      annotations: corners.map(([x, y], quadrant) => ({
        text: quadrants[quadrant], x, y, xref: "paper", yref: "paper", showarrow: false,
        xanchor: x ? "right" : "left", yanchor: y ? "top" : "bottom", font: { size: 13, color: colours.ink },
      })),
    };
  }

  placeOf(point) {
    const { addresses, trajectory, index } = this.data;
    return [...addresses[trajectory[point]], index[point]];
  }

  /** List points, those with the largest KL first. */
  listPoints(points, words) {
    const { listed } = this.legend;
    const ranked = [...points].sort((a, b) => this.data.kl[b] - this.data.kl[a]);
    const rest = points.length > listed ? `, the ${listed} with the largest reverse KL` : "";
    return this.calls.list(`${words}: ${counted(points.length, "token")}${rest}`, ranked.map((point) => this.placeOf(point)));
  }

  /** List the tokens of a quadrant, and light them. */
  pick(quadrant) {
    const points = [...this.data.quadrant.keys()].filter((i) => this.data.quadrant[i] === quadrant);
    this.press(quadrant);
    this.select(points);
    this.listPoints(points, this.legend.quadrants[quadrant]);
  }

  /** Mark the button of a quadrant as pressed, or none. */
  press(quadrant) {
    this.buttons.forEach((button, i) => (button.ariaPressed = String(i === quadrant)));
  }

  /** Light points, or all where `points` is null; what was drawn round goes. */
  select(points) {
    if (this.plot.data) Plotly.update(this.plot, { selectedpoints: [points] }, { selections: [] });
  }

  /** It has more or less room. */
  resize() {
    if (this.isDrawn) Plotly.Plots.resize(this.plot);
  }
}
