/* Plots: plotly comes from our own server, once a page, and only when a plot is to be drawn: it is large. */

import { readColours } from "../view/js/colour.js";
import { make } from "../view/js/dom.js";

const COLOURS = [
  "ink", "muted", "line", "paper", "wrong", "like", "dislike",
  "student", "student-thin", "student-soft", "teacher", "heldout", "third", "fourth",
];

/** Load plotly; whether it is there. */
export async function loadPlotly(address) {
  window.opdPlotly ??= new Promise((resolve, reject) => {
    document.head.append(Object.assign(make("script"), { src: address, onload: resolve, onerror: reject }));
  });
  try {
    await window.opdPlotly;
    return true;
  } catch {
    delete window.opdPlotly; // so that the next time may be luckier
    return false;
  }
}

export const plotColours = (root) => readColours(root, COLOURS);

/** What all plots have in common. */
export function plotLayout(root, colours) {
  return {
    margin: { l: 8, r: 8, t: 8, b: 8 },
    paper_bgcolor: "transparent",
    plot_bgcolor: "transparent",
    font: { family: getComputedStyle(root).fontFamily, size: 12, color: colours.muted },
    showlegend: false,
    hoverlabel: { bgcolor: colours.paper, bordercolor: colours.line, font: { color: colours.ink } },
  };
}

/** A gesture of the mouse; a finger must still be able to scroll the page. */
export const dragMode = (mode) => (matchMedia("(pointer: coarse)").matches ? false : mode);

/** Draw a plot, the first time or in place, so that a zoom is kept. `listeners`: what plotly's events do. */
export function drawPlot(element, traces, layout, listeners = {}) {
  const isNew = !element.data;
  Plotly.react(element, traces, layout, { displayModeBar: false, responsive: true });
  if (isNew) for (const [event, act] of Object.entries(listeners)) element.on(event, act);
}
