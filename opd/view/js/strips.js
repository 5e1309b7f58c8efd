/* The pictures beside the text: barcode of the rail, minimap, graph. All on canvases, all pooled by maximum. */

import { RAMPS, heatLevel, peaks, prepareCanvas, readColours } from "./colour.js";
import { SIGNALS, tallness } from "./signals.js";
import { number } from "./words.js";

const PAINTS = ["line", "muted", "ink", "paper", "fork", "cursor", "window", "teacher", "shade"];

export const GRAPH_SLOT = 14; // pixels; short trajectories keep slim bars instead of filling the strip
export const POINTER_REACH = 3; // pixels

/** Resolve all colours that the pictures need. */
export function readPalette(root) {
  const steps = RAMPS.flatMap((ramp) => [1, 2, 3, 4, 5, 6].map((step) => `${ramp}-${step}`));
  return { ...readColours(root, [...PAINTS, ...steps]), font: getComputedStyle(root).fontFamily };
}

/** The penalties in miniature: one bar per token, coloured like it. */
export function drawBarcode(canvas, review, steps, palette) {
  const prepared = prepareCanvas(canvas);
  if (!prepared) return;
  const { context, width, height } = prepared;
  const values = review.penalty;
  const columns = Math.min(Math.floor(width), values.length);
  const step = Math.min(width / columns, 6);
  peaks(values, columns).forEach((index, x) => {
    const level = heatLevel(values[index], steps);
    context.fillStyle = level ? palette[`${SIGNALS.penalty.ramp(values[index])}-${level}`] : palette.line;
    context.fillRect(x * step, level ? 0 : height / 2 - 0.5, Math.max(step - 0.5, 0.5), level ? height : 1);
  });
}

/** The whole text at the right edge, first token on top: heat, forks, what is searched or lit, the window. */
export function drawMinimap(pane) {
  const prepared = prepareCanvas(pane.minimap);
  const { values, review, view } = pane;
  if (!prepared || !review.count) return;
  const { context, width, height } = prepared;
  const { palette, signal, steps } = view;
  const row = pane.minimapRow(height);
  const y = (index) => index * row;

  const { first, last } = pane.sheet.window();
  if (first > 0 || last < review.count - 1) {
    context.fillStyle = palette.window;
    context.fillRect(0, y(first), width, Math.max(4, y(last + 1) - y(first)));
  }
  const rows = Math.min(review.count, Math.floor(height));
  const thick = Math.max(1, (row * review.count) / rows - 0.5);
  peaks(pane.shown, rows).forEach((index, at) => {
    const level = heatLevel(pane.shown[index], steps);
    if (!level) return;
    context.fillStyle = palette[`${SIGNALS[signal].ramp(pane.shown[index])}-${level}`];
    context.fillRect(4, (at * row * review.count) / rows, width - 5, thick);
  });
  context.fillStyle = palette.fork;
  for (const index of pane.forks) context.fillRect(0, y(index + 0.5) - 1, 3, 2);
  context.fillStyle = palette.ink;
  const lit = pane.lit ?? view.filter;
  if (lit) {
    for (let i = 0; i < values.length; i++) if (pane.matches(i, lit)) context.fillRect(0, y(i + 0.5) - 1, width, 2);
  }
  context.fillStyle = palette.teacher;
  for (const { first: hit } of pane.hits) context.fillRect(0, y(hit + 0.5) - 1, width / 2, 2);
  context.fillStyle = palette.cursor;
  for (const index of [view.pinnedIndex(pane), view.preview.indexIn(pane)]) {
    if (index !== null) context.fillRect(0, y(index + 0.5) - 1, width, 2);
  }
}

/** The signal along the text, with what is known about its course. */
export function drawGraph(pane) {
  const prepared = prepareCanvas(pane.canvas);
  const { review, shown, units, view } = pane;
  if (!prepared || !review.count) return;
  const { context, width, height } = prepared;
  const { palette, signal, steps } = view;
  const slot = pane.slotWidth(width);
  const base = height - (SIGNALS[signal].signed ? 26 : 14);
  const x = (index) => index * slot;
  context.font = `11px ${palette.font}`;

  const { first, last } = pane.sheet.window();
  if (first > 0 || last < review.count - 1) {
    context.fillStyle = palette.window;
    context.fillRect(x(first), 0, x(last + 1) - x(first), height);
  }
  const downstream = pane.downstream();
  if (downstream) {
    context.fillStyle = palette.shade;
    context.fillRect(x(downstream.at + 1), 0, x(review.count) - x(downstream.at + 1), base);
    const words = `downstream of fork ${downstream.fork}`;
    if (context.measureText(words).width + 12 < x(review.count) - x(downstream.at + 1)) {
      context.fillStyle = palette.muted;
      context.fillText(words, x(downstream.at + 1) + 6, 12);
    }
  }

  context.fillStyle = palette.line;
  context.fillRect(0, base, width, 1);
  const bar = (value, left, right) => {
    const level = Math.max(heatLevel(value, steps), 2); // the palest steps are for areas, not for bars
    context.fillStyle = palette[`${SIGNALS[signal].ramp(value)}-${level}`];
    const tall = tallness(value, signal, steps) * (value < 0 ? height - base - 9 : base - 4);
    context.fillRect(left, value < 0 ? base + 1 : base - tall, Math.max(right - left - 1, 0.75), tall);
  };
  if (units.count <= width) {
    pane.unitValues.forEach((value, unit) => bar(value, x(units.first[unit]), x(units.first[unit + 1])));
  } else {
    const columns = Math.floor(width);
    const step = x(review.count) / columns;
    peaks(shown, columns).forEach((index, at) => bar(shown[index], at * step, (at + 1) * step));
  }
  if (review.spans) drawUngraded(context, review, { x, base, palette });
  if (view.cumulative && SIGNALS[signal].combine !== "max") drawCumulative(context, pane, { x, base, width, palette });
  if (review.evidence?.noReturn) drawNoReturn(context, review.evidence.noReturn, { x, base, slot, palette });

  context.fillStyle = palette.fork;
  for (const index of pane.forks) diamond(context, x(index + 0.5), height - 4, 3.2);
  const marked = view.preview.indexIn(pane) ?? view.pinnedIndex(pane);
  if (marked !== null) {
    const unit = units.of[marked];
    context.strokeStyle = palette.cursor;
    context.lineWidth = 1.5;
    context.strokeRect(x(units.first[unit]) - 1, 1, x(units.first[unit + 1]) - x(units.first[unit]) + 1, height - 2);
  }
}

/** A hatch where there is no value: a gap would look like a 0. */
function drawUngraded(context, review, { x, base, palette }) {
  context.strokeStyle = palette.muted;
  context.lineWidth = 1;
  context.beginPath();
  for (let i = 0; i < review.count; i++) {
    if (!review.isUngraded(i)) continue;
    for (let left = x(i) + 1; left + 4 <= x(i + 1); left += 4) {
      context.moveTo(left, base - 1);
      context.lineTo(left + 4, base - 9);
    }
  }
  context.stroke();
}

/** The running sum of the signal, from 0 to its end. */
function drawCumulative(context, pane, { x, base, width, palette }) {
  const { values } = pane;
  const step = Math.max(1, Math.floor(values.length / width));
  const points = [];
  let sum = 0;
  values.forEach((value, i) => {
    sum += value || 0; // what is not known adds nothing
    if (i % step === 0 || i === values.length - 1) points.push([x(i + 1), sum]);
  });
  const most = Math.max(...points.map(([, value]) => Math.abs(value)));
  if (!most) return;
  context.strokeStyle = palette.ink;
  context.lineWidth = 1.25;
  context.beginPath();
  context.moveTo(0, base);
  for (const [at, value] of points) context.lineTo(at, base - (Math.max(0, value) / most) * (base - 16));
  context.stroke();
  const words = `Σ ${number(sum, 1)} ${SIGNALS[pane.view.signal].unit}`;
  const end = Math.min(x(values.length) + 6, width - context.measureText(words).width - 4);
  context.fillStyle = palette.ink;
  context.fillText(words, end, Math.max(12, base - (Math.max(0, sum) / most) * (base - 16) - 5));
}

/** How often rollouts from here end right, 0 at the base to 100 % at the top, with its intervals. */
function drawNoReturn(context, { points, at }, { x, base, slot, palette }) {
  const y = (share) => base - share * (base - 6);
  context.strokeStyle = context.fillStyle = palette.teacher;
  context.lineWidth = 1.5;
  context.beginPath();
  const placed = points.map((point) => ({ ...point, left: x(point.index) + slot / 2, share: point.right / point.n }));
  for (const { left, share } of placed) context.lineTo(left, y(share));
  context.stroke();
  context.lineWidth = 1;
  for (const { left, share, low, high } of placed) {
    context.beginPath();
    context.moveTo(left, y(low));
    context.lineTo(left, y(high));
    context.stroke();
    context.fillRect(left - 2, y(share) - 2, 4, 4);
  }
  if (at === null) return;
  context.setLineDash([3, 3]);
  context.beginPath();
  context.moveTo(x(at), 0);
  context.lineTo(x(at), base);
  context.stroke();
  context.setLineDash([]);
}

function diamond(context, x, y, radius) {
  context.beginPath();
  context.moveTo(x, y - radius);
  context.lineTo(x + radius, y);
  context.lineTo(x, y + radius);
  context.lineTo(x - radius, y);
  context.fill();
}
