/*
 * Curves of runs, drawn by plotly. A plot is made once and updated in place, so a zoom is kept while points
 * arrive; one that nobody sees is drawn when it comes into sight.
 *
 * A panel is { name, title, words, unit, range, traces }, and a trace { key, label, colour, look }: the
 * metric, its name, a CSS variable, and one of LOOKS. opd/view/panels.json has those of one run.
 */

import { make, makeKey, onRecolour } from "../view/js/dom.js";
import { dragMode, drawPlot, loadPlotly, plotColours, plotLayout } from "./plotly.js";

/** Metrics by step, as rows arrive; a step that comes again replaces its earlier row. */
export class Rows {
  all = [];

  add(fresh) {
    for (const row of fresh) {
      const last = this.all.at(-1)?.step ?? -1;
      if (row.step > last) this.all.push(row);
      else this.all[this.all.findIndex(({ step }) => step >= row.step)] = row;
    }
  }

  /** Whether a metric was measured at any step. */
  has(key) {
    return this.all.some((row) => row[key] !== undefined);
  }

  /** Points of a metric: { x, y }, averaged over the last `window` of them. */
  points(key, { window = 1, axis = "step" } = {}) {
    const there = this.all.filter((row) => row[key] !== undefined);
    const places = this.places(axis);
    let sum = 0;
    const y = there.map((row, i) => {
      sum += row[key] - (i >= window ? there[i - window][key] : 0);
      return window === 1 ? row[key] : sum / Math.min(i + 1, window);
    });
    return { x: there.map((row) => places.get(row.step)), y, steps: there.map((row) => row.step) };
  }

  /** Where each step stands on an axis: itself, or all tokens or seconds of training until then. */
  places(axis) {
    let total = 0;
    return new Map(
      this.all.map((row) => {
        total += axis === "tokens" ? row.tokens ?? 0 : axis === "seconds" ? trainingSeconds(row) : 0;
        return [row.step, axis === "step" ? row.step : total];
      }),
    );
  }
}

/** What training took of a step; evaluations are not counted. */
export function trainingSeconds(row) {
  return (row.seconds_sample ?? 0) + (row.seconds_teacher ?? 0) + (row.seconds_update ?? 0);
}

/** The layout of a panel's plot; `across` is its horizontal axis. */
export function curveLayout(root, colours, panel, across) {
  const axis = { gridcolor: colours.line, zerolinecolor: colours.line, linecolor: colours.line, automargin: true };
  return {
    ...plotLayout(root, colours),
    hovermode: "x unified",
    hoverdistance: -1,
    barmode: "stack",
    bargap: 0.15,
    dragmode: dragMode("zoom"),
    xaxis: { ...axis, rangemode: "tozero", ...across, title: { text: across.title ?? "step", standoff: 4 } },
    yaxis: { ...axis, tickformat: panel.unit, ...(panel.range ? { range: panel.range } : { rangemode: "tozero" }) },
  };
}

const LOOKS = {
  raw: (colour) => ({ mode: "lines", line: { color: colour, width: 1.5 }, hoverinfo: "skip" }),
  mean: (colour) => ({ mode: "lines", line: { color: colour, width: 2.5 } }),
  measured: (colour) => ({ mode: "lines+markers", line: { color: colour, width: 2.5 }, marker: { size: 6 } }),
  reference: (colour) => ({ mode: "lines", line: { color: colour, width: 2, dash: "dash" } }),
  floor: () => ({ mode: "lines", line: { width: 0 }, hoverinfo: "skip" }),
  band: (colour) => ({ mode: "lines", line: { width: 0 }, fill: "tonexty", fillcolor: colour, hoverinfo: "skip" }),
  part: (colour) => ({ type: "bar", marker: { color: colour } }),
};

/** Which curves are but bounds, in words; `curves` are pairs of a name and what bound it is, or undefined. */
export function boundNote(curves) {
  const names = {};
  for (const [name, bound] of curves) if (bound) (names[bound] ??= []).push(name);
  return Object.entries(names).map(([bound, own]) => `${own.join(", ")}: ${bound}`).join("; ");
}

/** The figures of some panels in one place of the page. */
export class Board {
  /**
   * @param {any} given `plotly` is its address; `curvesOf(panel, colours)` gives the plotly traces of a panel,
   *   `measured(panel)` whether there is anything to draw: else it is not shown. And, where wanted, `marksOf(panel)`
   *   places on its axis to mark, `axis()` the axis that all share, `boundsOf(panel)` what boundNote takes;
   *   `onPoint(step)` hears of a click.
   */
  constructor(root, place, panels, given) {
    this.root = root;
    this.given = { marksOf: () => [], boundsOf: () => [], axis: () => ({}), onPoint: () => {}, ...given };
    this.seen = new Set();
    this.stale = new Set();
    this.identity = "";
    this.plots = panels.map((panel) => this.makeFigure(place, panel));
    const observer = new IntersectionObserver((entries) => {
      for (const { target, isIntersecting } of entries) {
        this.seen[isIntersecting ? "add" : "delete"](target);
        if (isIntersecting && this.stale.has(target)) this.draw(target);
      }
    });
    for (const plot of this.plots) observer.observe(plot);
    onRecolour(() => this.update());
  }

  makeFigure(place, panel) {
    const labelled = panel.traces.filter(({ label, look }) => label && look !== "raw");
    const keys = (labelled.length > 1 ? labelled : []).map(({ label, colour }) => makeKey(colour, `${label} `));
    const bound = make("span", "bound");
    const plot = Object.assign(make("div", "curve"), { panel, bound });
    plot.dataset.curve = panel.name;
    const figure = make("figure", "", make("figcaption", "", make("b", "", panel.title), ` ${panel.words} `, ...keys, bound), plot);
    figure.hidden = true;
    place.append(figure);
    return plot;
  }

  /** Draw all plots anew, at once or when they are seen; `identity` names what is shown: another one, no zoom. */
  update(identity = this.identity) {
    this.identity = identity;
    if (!identity) return;
    for (const plot of this.plots) {
      plot.parentElement.hidden = !this.given.measured(plot.panel);
      if (this.seen.has(plot)) this.draw(plot);
      else this.stale.add(plot);
    }
  }

  async draw(plot) {
    const { plotly, curvesOf, marksOf, boundsOf, axis, onPoint } = this.given;
    this.stale.delete(plot);
    if (!(await loadPlotly(plotly))) {
      this.stale.add(plot);
      return;
    }
    const { panel, bound } = plot;
    bound.textContent = boundNote(boundsOf(panel));
    const colours = plotColours(this.root);
    const layout = { ...curveLayout(this.root, colours, panel, axis()), uirevision: this.identity };
    const line = { color: colours.wrong, width: 1.5, dash: "dot" };
    const shapes = marksOf(panel).map((x) => ({ type: "line", x0: x, x1: x, yref: "paper", y0: 0, y1: 1, line }));
    drawPlot(plot, curvesOf(panel, colours), { ...layout, shapes }, {
      plotly_click: ({ points }) => {
        const { data, pointNumber } = points.at(-1);
        onPoint(data.steps[pointNumber]);
      },
    });
  }
}

/** The plotly traces of one run's panel. */
export function curvesOfRun(panel, colours, rows, window) {
  return panel.traces.map(({ key, label, colour, look }) => {
    const points = rows.points(key, { window: look === "mean" ? window : 1 });
    const trace = { type: "scatter", name: label, ...points, ...LOOKS[look](colours[colour]) };
    if (points.x.length === 1 && look !== "part") trace.mode = "markers"; // no line yet
    return { cliponaxis: look === "part", hovertemplate: `%{y:${panel.unit ?? ".4~g"}}`, ...trace };
  });
}
