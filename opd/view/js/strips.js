/* The pictures beside the text: barcode of the rail, minimap, graph. All on canvases, all pooled by maximum. */

import { Picture, RAMPS, heatLevel, peaks, readColours } from "./colour.js";
import { SIGNALS, tallness } from "./signals.js";
import { number } from "./words.js";

const COLOURS = ["line", "muted", "ink", "paper", "fork", "cursor", "window", "teacher", "shade"];
export const GRAPH_SLOT = 14; // pixels; short trajectories keep slim bars instead of filling the strip
export const POINTER_REACH = 3; // pixels

/** Resolve all colours that the pictures need. */
export function readPalette(root) {
  const steps = RAMPS.flatMap((ramp) => [1, 2, 3, 4, 5, 6].map((step) => `${ramp}-${step}`));
  return { ...readColours(root, [...COLOURS, ...steps]), font: getComputedStyle(root).fontFamily };
}

/** The penalties in miniature: one bar per token, coloured like it. */
export function drawBarcode(canvas, review, steps, palette) {
  const picture = new Picture(canvas);
  if (picture.isHidden) return;
  const { width, height } = picture;
  const values = review.penalty;
  const columns = Math.min(Math.floor(width), values.length);
  const step = Math.min(width / columns, 6);
  const bar = Math.max(step - 0.5, 0.5);
  peaks(values, columns).forEach((index, x) => {
    const level = heatLevel(values[index], steps);
    if (level) picture.area(palette[`${SIGNALS.penalty.ramp(values[index])}-${level}`], x * step, 0, bar, height);
    else picture.area(palette.line, x * step, height / 2 - 0.5, bar, 1);
  });
}

/** The whole text at the right edge, first token on top: heat, forks, what is searched or lit, the window. */
export function drawMinimap(pane) {
  const picture = new Picture(pane.minimap);
  const { review, view } = pane;
  if (picture.isHidden || !review.count) return;
  const { width, height } = picture;
  const { palette, signal, steps } = view;
  const row = pane.minimapRow(height);
  const mark = (colour, index, across) => picture.area(colour, 0, (index + 0.5) * row - 1, across, 2);

  const { first, last } = pane.sheet.window();
  if (first > 0 || last < review.count - 1) {
    picture.area(palette.window, 0, first * row, width, Math.max(4, (last + 1 - first) * row));
  }
  const rows = Math.min(review.count, Math.floor(height));
  const thick = Math.max(1, (row * review.count) / rows - 0.5);
  peaks(pane.shown, rows).forEach((index, at) => {
    const level = heatLevel(pane.shown[index], steps);
    const colour = palette[`${SIGNALS[signal].ramp(pane.shown[index])}-${level}`];
    if (level) picture.area(colour, 4, (at * row * review.count) / rows, width - 5, thick);
  });
  for (const index of pane.forks) mark(palette.fork, index, 3);
  const lit = pane.lit ?? view.filter;
  for (let i = 0; lit && i < review.count; i++) if (pane.matches(i, lit)) mark(palette.ink, i, width);
  for (const hit of pane.hits) mark(palette.teacher, hit.first, width / 2);
  for (const index of [view.pinnedIndex(pane), view.preview.indexIn(pane)]) {
    if (index !== null) mark(palette.cursor, index, width);
  }
}

/** The signal along the text, with what is known about its course. */
export function drawGraph(pane) {
  const picture = new Picture(pane.canvas);
  const { review, units, view } = pane;
  if (picture.isHidden || !review.count) return;
  const { context, width, height } = picture;
  const { palette, signal } = view;
  const slot = pane.slotWidth(width);
  const graph = { picture, palette, slot, base: height - (SIGNALS[signal].signed ? 26 : 14) };
  context.font = `11px ${palette.font}`;

  const { first, last } = pane.sheet.window();
  if (first > 0 || last < review.count - 1) picture.area(palette.window, first * slot, 0, (last + 1 - first) * slot, height);
  drawDownstream(graph, pane);
  picture.area(palette.line, 0, graph.base, width, 1);
  drawBars(graph, pane);
  if (review.spans) drawUngraded(graph, review);
  if (view.cumulative && SIGNALS[signal].combine !== "max") drawCumulative(graph, pane);
  if (review.evidence?.noReturn) drawNoReturn(graph, review.evidence.noReturn);

  for (const index of pane.forks) picture.diamond(palette.fork, (index + 0.5) * slot, height - 4, 3.2);
  const marked = view.preview.indexIn(pane) ?? view.pinnedIndex(pane);
  if (marked !== null) {
    const [from, to] = [units.first[units.of[marked]], units.first[units.of[marked] + 1]];
    Object.assign(context, { strokeStyle: palette.cursor, lineWidth: 1.5 });
    context.strokeRect(from * slot - 1, 1, (to - from) * slot + 1, height - 2);
  }
}

/** What comes after a fork lies in its shade. */
function drawDownstream({ picture, palette, slot, base }, pane) {
  const downstream = pane.downstream();
  if (!downstream) return;
  const left = (downstream.at + 1) * slot;
  const width = pane.review.count * slot - left;
  const words = `downstream of fork ${downstream.fork}`;
  picture.area(palette.shade, left, 0, width, base);
  if (picture.context.measureText(words).width + 12 < width) picture.text(palette.muted, words, left + 6, 12);
}

function drawBars({ picture, palette, slot, base }, { review, shown, unitValues, units, view: { signal, steps } }) {
  const bar = (value, left, right) => {
    const level = Math.max(heatLevel(value, steps), 2); // the palest steps are for areas, not for bars
    const tall = tallness(value, signal, steps) * (value < 0 ? picture.height - base - 9 : base - 4);
    const colour = palette[`${SIGNALS[signal].ramp(value)}-${level}`];
    picture.area(colour, left, value < 0 ? base + 1 : base - tall, Math.max(right - left - 1, 0.75), tall);
  };
  if (units.count <= picture.width) {
    unitValues.forEach((value, unit) => bar(value, units.first[unit] * slot, units.first[unit + 1] * slot));
  } else {
    const columns = Math.floor(picture.width);
    const step = (review.count * slot) / columns;
    peaks(shown, columns).forEach((index, at) => bar(shown[index], at * step, (at + 1) * step));
  }
}

/** A hatch where there is no value: a gap would look like a 0. */
function drawUngraded({ picture, palette, slot, base }, review) {
  for (let i = 0; i < review.count; i++) {
    if (!review.isUngraded(i)) continue;
    for (let left = i * slot + 1; left + 4 <= (i + 1) * slot; left += 4) {
      picture.line(palette.muted, 1, [[left, base - 1], [left + 4, base - 9]]);
    }
  }
}

/** The running sum of the signal, from 0 to its end. */
function drawCumulative({ picture, palette, slot, base }, { values, view }) {
  const step = Math.max(1, Math.floor(values.length / picture.width));
  const sums = [];
  let sum = 0;
  values.forEach((value, i) => {
    sum += value || 0; // what is not known adds nothing
    if (i % step === 0 || i === values.length - 1) sums.push([(i + 1) * slot, sum]);
  });
  const most = Math.max(...sums.map(([, value]) => Math.abs(value)));
  if (!most) return;
  const y = (value) => base - (Math.max(0, value) / most) * (base - 16);
  picture.line(palette.ink, 1.25, [[0, base], ...sums.map(([left, value]) => [left, y(value)])]);
  const words = `Σ ${number(sum, 1)} ${SIGNALS[view.signal].unit}`;
  const end = picture.width - picture.context.measureText(words).width - 4;
  picture.text(palette.ink, words, Math.min(values.length * slot + 6, end), Math.max(12, y(sum) - 5));
}

/** How often rollouts from here end right, 0 at the base to 100 % at the top, with its intervals. */
function drawNoReturn({ picture, palette, slot, base }, { points, at }) {
  const { teacher } = palette;
  const y = (share) => base - share * (base - 6);
  const placed = points.map(({ index, right, n, low, high }) => ({ left: (index + 0.5) * slot, share: right / n, low, high }));
  picture.line(teacher, 1.5, placed.map(({ left, share }) => [left, y(share)]));
  for (const { left, share, low, high } of placed) {
    picture.line(teacher, 1, [[left, y(low)], [left, y(high)]]);
    picture.area(teacher, left - 2, y(share) - 2, 4, 4);
  }
  if (at !== null) picture.line(teacher, 1, [[at * slot, 0], [at * slot, base]], [3, 3]);
}
